"""How a task instance names its batch, so that a retry finds it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from airflow_batch_llm.hooks.names import fitted, origin_of, run_group
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.operators.noted import Note
from airflow_batch_llm.wire import Batch, Origin


@dataclass(frozen=True)
class TaskBatchNames:
    """The names under which one life of a task instance submits.

    ``key`` stays through retries and changes when the task is cleared, because Airflow raises ``max_tries`` then.
    ``series`` stays through both. ``holder`` is this try. A dry run has names of its own. ``group`` is that of all
    batches of the Dag run, ``origin`` says which task instance it is.

    ``cleared`` tells a life after a clear from the first one: a clear leaves ``max_tries`` at the tries until then plus
    the task's retries. Where a task is cleared while it runs on a worker Airflow raises nothing; for that see
    :meth:`in_present_life`. ``clears`` counts the clears of tasks of the Dag run, this one or others.
    """

    key: str
    series: str
    holder: str
    group: str
    origin: Origin
    cleared: bool = False
    clears: int = 0

    @classmethod
    def of(cls, ti: Any, deployment: str, *, retries: int = 0, dry_run: bool = False, clears: int = 0) -> Self:
        series = f"{deployment}/{ti.dag_id}/{ti.task_id}/{ti.run_id}/{ti.map_index}{'/dry-run' * dry_run}"
        return cls(
            key=fitted(f"{series}/{ti.max_tries}"),
            series=fitted(series),
            holder=str(ti.id),
            group=run_group(deployment, ti.dag_id, ti.run_id),
            origin=origin_of(ti, deployment),
            cleared=ti.max_tries > retries,
            clears=clears,
        )

    def in_present_life(self, find: Callable[[str], Batch | None]) -> Self:
        """These names, or those of a later life, where the task was cleared while it ran on a worker.

        Airflow kills such a task and starts it again as if for a retry. What tells it from one: tasks of the Dag run
        were cleared since the batch was submitted, and the batch was cancelled, as a task does when it is killed.
        """
        names, lives = self, 0
        while self.clears and (batch := find(names.key)) is not None and self._was_cleared_since(batch):
            lives += 1
            names = replace(self, key=fitted(f"{self.key}/{lives}"), cleared=True)
        return names

    def _was_cleared_since(self, batch: Batch) -> bool:
        cancelled = batch.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
        return cancelled and Note.of(batch).clears < self.clears
