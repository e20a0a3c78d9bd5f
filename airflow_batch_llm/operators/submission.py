"""How a task instance names its batch, so that a retry finds it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from airflow_batch_llm.hooks.names import fitted, run_group


@dataclass(frozen=True)
class TaskBatchNames:
    """The names under which one life of a task instance submits.

    ``key`` stays through retries and changes when the task is cleared, because Airflow raises ``max_tries`` then.
    ``series`` stays through both. ``holder`` is this try. A dry run has names of its own. ``group`` is that of all
    batches of the Dag run.

    ``cleared`` tells a life after a clear from the first one: a clear leaves ``max_tries`` at the tries until then plus
    the task's retries. A task that was cleared while it ran on a worker looks like a retry: Airflow raises nothing
    there, and its batch goes on.
    """

    key: str
    series: str
    holder: str
    group: str
    cleared: bool = False

    @classmethod
    def of(cls, ti: Any, deployment: str, *, retries: int = 0, dry_run: bool = False) -> Self:
        series = f"{deployment}/{ti.dag_id}/{ti.task_id}/{ti.run_id}/{ti.map_index}{'/dry-run' * dry_run}"
        return cls(
            key=fitted(f"{series}/{ti.max_tries}"),
            series=fitted(series),
            holder=str(ti.id),
            group=run_group(deployment, ti.dag_id, ti.run_id),
            cleared=ti.max_tries > retries,
        )
