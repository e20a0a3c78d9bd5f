"""Names that the tasks of an Airflow give at the service, so that they find their batches again."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from airflow_batch_llm.wire import Origin

LONGEST: Final = 512
"""What the service takes. Airflow allows 250 characters each for the ids of Dag, task and run."""


def run_group(deployment: str, dag_id: str, run_id: str) -> str:
    """The group of all batches that tasks of one Dag run submit."""
    return fitted(f"{deployment}/{dag_id}/{run_id}")


def origin_of(ti: Any, deployment: str) -> Origin:
    """Where a task instance's batches say that they come from."""
    return Origin(
        deployment=fitted(deployment), dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index
    )


def fitted(name: str) -> str:
    """The name, or one that is short enough and as much its own."""
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name[: LONGEST - len(digest) - 1]}~{digest}"
