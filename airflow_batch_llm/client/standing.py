"""Which of many batches count: of those that replaced one another, the last one."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_batch_llm.wire import Batch


def standing(newest_first: Iterable[Batch]) -> list[Batch]:
    """The newest batch of each series (without one, of each key), the oldest of these first."""
    found: dict[str, Batch] = {}
    for batch in newest_first:
        found.setdefault(batch.series or batch.key or batch.id, batch)
    return list(reversed(found.values()))
