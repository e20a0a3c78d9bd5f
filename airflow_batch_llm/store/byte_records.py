"""What the records say of bytes in storage, asked for some keys at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from airflow_batch_llm.models import ENDED
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches, chunks, files, index_files, parts


@dataclass(frozen=True)
class BatchBytes:
    """All that decides what is needed of a batch's bytes."""

    id: str
    ended: bool
    of_table: bool
    plan_key: str | None
    staged_dropped: bool
    bytes_dropped: bool
    result_keys: tuple[str, ...]
    """Where its result files lie, those that were dropped left out."""


class ByteRecords:
    """Looks at the records of all teams; a look has some hundred ids or keys at most."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def batches(self, ids: Collection[str]) -> dict[str, BatchBytes]:
        """Those of the batches that there are, by id."""
        query = select(batches).where(batches.c.id.in_(ids))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            named = {file_id for row in rows for file_id in (row.output_file_id, row.error_file_id) if file_id}
            there = files.c.dropped_at.is_(None)
            keys: dict[str, str] = dict(
                connection.execute(select(files.c.id, files.c.storage_key).where(files.c.id.in_(named), there))
                .tuples()
                .all()
            )
        return {
            row.id: BatchBytes(
                row.id,
                row.status in ENDED,
                row.dataset is not None,
                row.plan_key,
                row.staged_dropped_at is not None,
                row.bytes_dropped_at is not None,
                tuple(keys[name] for name in (row.output_file_id, row.error_file_id) if name in keys),
            )
            for row in rows
        }

    def committed(self, batch_id: str, chunk_numbers: Sequence[int]) -> set[str]:
        """The storage keys of all parts that were committed of some chunks."""
        query = select(parts.c.storage_key).join(chunks, chunks.c.id == parts.c.chunk_id)
        query = query.where(
            chunks.c.batch_id == batch_id, chunks.c.number.between(min(chunk_numbers), max(chunk_numbers))
        )
        with self._database.reading() as connection:
            return set(connection.scalars(query))

    def file_keys(self, ids: Collection[str]) -> set[str]:
        """The storage keys of those of the files that were not dropped."""
        query = select(files.c.storage_key).where(files.c.id.in_(ids), files.c.dropped_at.is_(None))
        with self._database.reading() as connection:
            return set(connection.scalars(query))

    def index_keys(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that are an index file's."""
        query = select(index_files.c.storage_key).where(index_files.c.storage_key.in_(keys))
        with self._database.reading() as connection:
            return set(connection.scalars(query))
