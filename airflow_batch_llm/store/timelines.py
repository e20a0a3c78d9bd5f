"""When a batch got on: what was committed of it, by stretches of time.

The database adds up the parts, in an index that has all it needs of them: tens of thousands become a few hundred
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import orjson
from sqlalchemy import BigInteger, ColumnElement, Connection, Double, Text, cast, func, select

from airflow_batch_llm.page_wire import MOST_BUCKETS, Bucket, Timeline
from airflow_batch_llm.store.tables import parts

DAY: Final = 86_400
WIDTHS: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200, DAY)
"""Seconds that a reader takes in at a glance; above these, whole days."""

_SUMS: Final = (parts.c.rows, parts.c.rows_failed, parts.c.prompt_tokens, parts.c.completion_tokens)


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
    return Timeline(bucket_seconds=width, buckets=list(_buckets(connection, batch_id, first, last, width)))


def width_of(first: float, last: float) -> int:
    """The least round width at which no more buckets than are shown hold all of that time."""
    for width in WIDTHS:
        if last // width - first // width < MOST_BUCKETS:
            return width
    return DAY * math.ceil((last // DAY - first // DAY + 1) / (MOST_BUCKETS - 1))


def _end(batch_id: str, end: ColumnElement[float]) -> Any:
    """One end of the batch's stretch of the index; SQLite reads all of it where both are asked for at once."""
    return select(end).where(parts.c.batch_id == batch_id)


def _buckets(connection: Connection, batch_id: str, first: float, last: float, width: int) -> Iterator[Bucket]:
    """Each is a short walk along the index. To group the parts would be to sort them, at three times the cost."""
    number = _numbers(first // width, last // width)
    begin = cast(number, Double) * width
    within = (parts.c.batch_id == batch_id, parts.c.committed_at >= begin, parts.c.committed_at < begin + width)
    in_json = func.json_build_array if connection.dialect.name == "postgresql" else func.json_array
    # One column, since a scalar subquery has no more: four of them would be four walks.
    sums = select(cast(in_json(*map(func.sum, _SUMS)), Text)).where(*within).scalar_subquery()
    for found, summed in connection.execute(select(number, sums).order_by(number)).tuples():
        rows, failed, prompt_tokens, completion_tokens = orjson.loads(summed)
        if rows is not None:
            yield Bucket(
                at=found * width,
                rows=rows,
                failed=failed,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )


def _numbers(first: float, last: float) -> ColumnElement[int]:
    """The whole numbers from one to another."""
    numbers = select(cast(int(first), BigInteger).label("number")).cte("numbers", recursive=True)
    return numbers.union_all(select(numbers.c.number + 1).where(numbers.c.number < int(last))).c.number
