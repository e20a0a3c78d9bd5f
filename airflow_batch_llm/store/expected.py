"""Which objects the records say there are in storage, in the order of their keys: to be held against a listing.

Holds the keys of one batch's chunks, of a page of its parts, and of a page of other records; never those of all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, select

from airflow_batch_llm.models import ENDED
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches, chunks, files, index_files, parts

PAGE: Final = 200


@dataclass(frozen=True, order=True)
class Expected:
    """An object that must be there; of some the size is not on record."""

    key: str
    size: int | None = None


class ExpectedObjects:
    """What must be in storage for all teams."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Iterator[Expected]:
        for batch in self._pages(select(batches), batches.c.id, batches.c.bytes_dropped_at.is_(None)):
            yield from self._of_batch(batch)
        there = (files.c.dropped_at.is_(None), files.c.deleted_at.is_(None), files.c.storage_key.like("files/%"))
        for file in self._pages(select(files), files.c.storage_key, *there):
            yield Expected(file.storage_key, file.bytes)
        for index in self._pages(select(index_files), index_files.c.storage_key):
            yield Expected(index.storage_key, index.bytes)

    def expects(self, expected: Expected) -> bool:
        """Whether the records still say so."""
        folder, _, rest = expected.key.partition("/")
        if folder == "batches":
            with self._database.reading() as connection:
                batch = connection.execute(select(batches).where(batches.c.id == rest.partition("/")[0])).first()
            kept = batch is not None and batch.bytes_dropped_at is None
            return kept and any(one == expected for one in self._of_batch(batch))
        there = (files.c.dropped_at.is_(None), files.c.deleted_at.is_(None)) if folder == "files" else ()
        table = files if folder == "files" else index_files
        with self._database.reading() as connection:
            query = select(table.c.bytes).where(table.c.storage_key == expected.key, *there)
            return connection.scalar(query) == expected.size

    def _of_batch(self, batch: Any) -> Iterator[Expected]:
        return heapq.merge(self._parts(batch), sorted(self._results(batch)), sorted(self._planned(batch)))

    def _parts(self, batch: Any) -> Iterator[Expected]:
        of_batch = select(chunks.c.id, chunks.c.number).where(chunks.c.batch_id == batch.id)
        last = -1
        while True:
            page = of_batch.where(chunks.c.number > last).order_by(chunks.c.number).limit(PAGE)
            with self._database.reading() as connection:
                found = connection.execute(page).all()
                ids = [chunk.id for chunk in found]
                stored = select(parts.c.storage_key, parts.c.bytes).where(parts.c.chunk_id.in_(ids))
                committed = [Expected(*part) for part in connection.execute(stored)]
            yield from sorted(committed)
            if len(found) < PAGE:
                return
            last = found[-1].number

    def _results(self, batch: Any) -> list[Expected]:
        ids = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]
        there = (files.c.dropped_at.is_(None), files.c.deleted_at.is_(None))
        query = select(files.c.storage_key, files.c.bytes).where(files.c.id.in_(ids), *there)
        with self._database.reading() as connection:
            found = [Expected(*file) for file in connection.execute(query)]
        folders = {file.key.rpartition("/")[0] for file in found}
        return [*found, *(Expected(f"{folder}/index.parquet") for folder in folders)]

    def _planned(self, batch: Any) -> list[Expected]:
        """What a plan must have that was activated: chunks and staged rows until the end, the ids of a request file."""
        if batch.plan_key is None:
            return []
        of_file = batch.dataset is None
        found = [Expected(f"{batch.plan_key}/rows.parquet")] if of_file else []
        if batch.status in ENDED:
            return found
        if not of_file and not batch.dry_run:
            found.append(Expected(f"{batch.plan_key}/files.json"))
        query = select(chunks.c.storage_key, chunks.c.bytes).where(chunks.c.batch_id == batch.id)
        with self._database.reading() as connection:
            return [*found, *(Expected(*chunk) for chunk in connection.execute(query))]

    def _pages(self, query: Select[Any], by: Any, *where: Any) -> Iterator[Any]:
        """The rows in the order of a column that no two have in common."""
        last = ""
        while True:
            page = query.where(by > last, *where).order_by(by).limit(PAGE)
            with self._database.reading() as connection:
                found = connection.execute(page).all()
            yield from found
            if len(found) < PAGE:
                return
            last = getattr(found[-1], by.name)
