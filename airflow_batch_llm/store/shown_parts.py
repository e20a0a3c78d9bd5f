"""Which parts of a batch to look at, where somebody wants to see rows: told without opening one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import func, select

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import chunks, parts


class PlacedPart(NamedTuple):
    """A part by its place (from 1) in the order in which the batch's were committed."""

    place: int
    storage_key: str
    rows: int


class ShownParts:
    """Looks at the parts of one batch at a time, some of them at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def with_failures(self, batch_id: str, *, after: int, limit: int) -> list[PlacedPart]:
        """The next parts behind the place ``after`` in which a row has failed."""
        query = select(parts.c.place, parts.c.storage_key, parts.c.rows).where(
            parts.c.batch_id == batch_id, parts.c.place > after, parts.c.rows_failed > 0
        )
        with self._database.reading() as connection:
            return [PlacedPart(*row) for row in connection.execute(query.order_by(parts.c.place).limit(limit))]

    def totals(self, batch_id: str) -> tuple[int, int, int]:
        """How many parts there are, with how many rows, of which how many have failed."""
        query = select(
            func.count(), func.coalesce(func.sum(parts.c.rows), 0), func.coalesce(func.sum(parts.c.rows_failed), 0)
        ).where(parts.c.batch_id == batch_id)
        with self._database.reading() as connection:
            count, rows, failed = connection.execute(query).one()
        return int(count), int(rows), int(failed)

    def at(self, batch_id: str, places: Collection[int]) -> list[PlacedPart]:
        """The parts at some places, some dozen at most."""
        query = select(parts.c.place, parts.c.storage_key, parts.c.rows).where(
            parts.c.batch_id == batch_id, parts.c.place.in_(places)
        )
        with self._database.reading() as connection:
            return [PlacedPart(*row) for row in connection.execute(query.order_by(parts.c.place))]

    def chunk_keys(self, batch_id: str, places: Collection[int]) -> dict[int, str]:
        """Of the parts at some places, where the lines lie that their chunks asked."""
        query = (
            select(parts.c.place, chunks.c.storage_key)
            .join(chunks, chunks.c.id == parts.c.chunk_id)
            .where(parts.c.batch_id == batch_id, parts.c.place.in_(places))
        )
        with self._database.reading() as connection:
            return dict(connection.execute(query).tuples().all())

    def planned_chunks(self, batch_id: str) -> int:
        """How many chunks the plan had, before any was cut into pieces, which are about the same stored lines."""
        query = select(func.count(chunks.c.storage_key.distinct())).where(chunks.c.batch_id == batch_id)
        with self._database.reading() as connection:
            return connection.scalar(query) or 0


def spread(count: int, most: int) -> Sequence[int]:
    """At most ``most`` of the places 1 to ``count``, evenly spread."""
    if count <= most:
        return range(1, count + 1)
    return [1 + (2 * number + 1) * count // (2 * most) for number in range(most)]
