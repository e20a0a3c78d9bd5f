"""When a batch got on: what was committed of it, by stretches of time.

The parts of a batch are read by its own stretch of the index and added up by the database: tens of thousands of them
become at most some hundred numbers.
"""

from __future__ import annotations

import math
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, cast, func, select

from airflow_batch_llm.page_wire import MOST_BUCKETS, Bucket, Timeline
from airflow_batch_llm.store.tables import parts

DAY: Final = 86_400
WIDTHS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, DAY)
"""Seconds that a reader takes in at a glance; above these, whole days."""

_SUMS: Final = (
    func.sum(parts.c.rows).label("rows"),
    func.sum(parts.c.rows_failed).label("failed"),
    func.sum(parts.c.prompt_tokens).label("prompt_tokens"),
    func.sum(parts.c.completion_tokens).label("completion_tokens"),
)


def first_commit(connection: Connection, batch_id: str) -> float | None:
    """When the first rows of a batch were committed."""
    found: float | None = connection.scalar(_end(batch_id, func.min(parts.c.committed_at)))
    return found


def timeline(connection: Connection, batch_id: str) -> Timeline:
    """From a batch's first commit to its last one so far; rows that needed no engine have none.

    Buckets begin at multiples of their width, so that they stay as they are while the batch goes on.
    """
    first = first_commit(connection, batch_id)
    last: float | None = connection.scalar(_end(batch_id, func.max(parts.c.committed_at)))
    if first is None or last is None:
        return Timeline(bucket_seconds=WIDTHS[0], buckets=[])
    width = width_of(first, last)
    number = _bucket(connection, width)
    query = select(number.label("number"), *_SUMS).where(parts.c.batch_id == batch_id).group_by(number).order_by(number)
    buckets = [
        Bucket(at=found * width, rows=rows, failed=failed, prompt_tokens=prompt, completion_tokens=completion)
        for found, rows, failed, prompt, completion in connection.execute(query).tuples()
    ]
    return Timeline(bucket_seconds=width, buckets=buckets)


def width_of(first: float, last: float) -> int:
    """The least round width at which no more buckets than are shown hold all of that time."""
    for width in WIDTHS:
        if last // width - first // width < MOST_BUCKETS:
            return width
    return DAY * math.ceil((last // DAY - first // DAY + 1) / (MOST_BUCKETS - 1))


def _end(batch_id: str, end: ColumnElement[float]) -> Any:
    """One end of the batch's stretch of the index; SQLite reads all of it where both are asked for at once."""
    return select(end).where(parts.c.batch_id == batch_id)


def _bucket(connection: Connection, width: int) -> ColumnElement[int]:
    """The number of a part's bucket. A cast cuts on SQLite, which need not have ``floor``, and rounds on Postgres."""
    at = parts.c.committed_at / width
    return cast(func.floor(at) if connection.dialect.name == "postgresql" else at, BigInteger)
