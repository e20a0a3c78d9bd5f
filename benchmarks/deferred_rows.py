"""Writes deferred task instances and their triggers into the database of the Airflow whose home is ``AIRFLOW_HOME``.

    python benchmarks/deferred_rows.py DAG_ID TRIGGERS

TRIGGERS is a file with a JSON list of triggers, each ``[classpath, arguments]``: one mapped task instance for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pendulum
from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance, uuid7
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import insert

RUN_ID = "manual__deferred"


def write(dag_id: str, triggers: list[tuple[str, dict[str, object]]]) -> None:
    now = pendulum.now("UTC")
    with create_session() as session:
        version = DagVersion.get_latest_version(dag_id, session=session)
        if version is None:
            raise RuntimeError(f"Airflow has not parsed the Dag {dag_id}.")
        run = DagRun(
            dag_id=dag_id,
            run_id=RUN_ID,
            run_type=DagRunType.MANUAL,
            run_after=now,
            start_date=now,
            state=DagRunState.RUNNING,
            triggered_by=DagRunTriggeredByType.TEST,
        )
        run.created_dag_version_id = version.id
        rows = [Trigger(classpath=path, kwargs=arguments, created_date=now) for path, arguments in triggers]
        session.add_all([run, *rows])
        session.flush()
        instance = {
            "dag_id": dag_id,
            "task_id": "classify",
            "run_id": RUN_ID,
            "state": TaskInstanceState.DEFERRED,
            "try_number": 1,
            "max_tries": 0,
            "pool": "default_pool",
            "pool_slots": 1,
            "queue": "default",
            "priority_weight": 1,
            "start_date": now,
            "dag_version_id": version.id,
            "next_method": "execute_complete",
            "next_kwargs": {},
        }
        session.execute(
            insert(TaskInstance),
            [{**instance, "id": uuid7(), "map_index": number, "trigger_id": row.id} for number, row in enumerate(rows)],
        )


if __name__ == "__main__":
    write(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
