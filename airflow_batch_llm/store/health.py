"""What may be wrong in the store itself: leases that nobody holds, counts that do not add up, old tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnElement, Row, func, select

from airflow_batch_llm.models import LIVING, BatchStatus, ChunkState
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches, chunks, duties, parts, workers

PAGE: Final = 200


@dataclass(frozen=True)
class StuckChunk:
    batch_id: str
    number: int
    attempt: int
    worker: str | None
    seconds: float
    """How long ago the lease ran out."""


@dataclass(frozen=True)
class StuckDuty:
    batch_id: str
    kind: str
    holder: str | None
    seconds: float
    """For how long it could have been done."""


class Health:
    """Looks at the batches of all teams."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> float:
        with self._database.reading() as connection:
            return float(connection.execute(select(self._database.now())).scalar_one())

    def revisions(self) -> tuple[str | None, str | None]:
        """Which migration the tables are at, and which one this version wants."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self._database.reading() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        return current, ScriptDirectory.from_config(config).get_current_head()

    def stuck_chunks(self, seconds: float) -> list[StuckChunk]:
        """Chunks whose lease ran out so long ago, and that nobody has claimed since, though their batch goes on."""
        late = (self._database.now() - chunks.c.lease_until).label("late")
        query = (
            select(chunks.c.batch_id, chunks.c.number, chunks.c.attempt, workers.c.name, late)
            .join(batches, batches.c.id == chunks.c.batch_id)
            .outerjoin(workers, workers.c.id == chunks.c.worker_id)
            .where(batches.c.status == BatchStatus.IN_PROGRESS, batches.c.paused.is_(None))
            .where(chunks.c.state == ChunkState.LEASED, late > seconds)
        )
        with self._database.reading() as connection:
            return [StuckChunk(*row) for row in connection.execute(query.order_by(chunks.c.id))]

    def stuck_duties(self, seconds: float) -> list[StuckDuty]:
        """Duties that could have been done for so long, and that nobody does."""
        since = func.coalesce(duties.c.lease_until, duties.c.not_before, batches.c.finalizing_at, batches.c.created_at)
        late = (self._database.now() - since).label("late")
        query = select(duties.c.batch_id, duties.c.kind, duties.c.holder, late).join(
            batches, batches.c.id == duties.c.batch_id
        )
        query = query.where(duties.c.done.is_(False), late > seconds).order_by(duties.c.batch_id, duties.c.kind)
        with self._database.reading() as connection:
            return [StuckDuty(*row) for row in connection.execute(query)]

    def living(self) -> Iterator[Mapping[str, Any]]:
        """The batches that have not ended."""
        for row in self._pages(select(batches), batches.c.status.in_(LIVING)):
            yield row._asdict()

    def miscounted(self) -> Iterator[tuple[str, str]]:
        """The batches whose counts do not add up, with a sentence for each."""
        of_chunks = select(func.count()).where(chunks.c.batch_id == batches.c.id)
        chunk_rows = select(func.coalesce(func.sum(chunks.c.rows_done), 0)).where(chunks.c.batch_id == batches.c.id)
        part_rows = select(func.coalesce(func.sum(parts.c.rows), 0)).where(parts.c.batch_id == batches.c.id)
        query = select(
            *(batches.c[name] for name in ("id", "status", "dry_run", "rows_total", "rows_done")),
            *(batches.c[name] for name in ("chunks_total", "chunks_done")),
            of_chunks.scalar_subquery().label("chunk_total"),
            of_chunks.where(chunks.c.state == ChunkState.DONE).scalar_subquery().label("chunk_done"),
            chunk_rows.scalar_subquery().label("chunk_rows"),
            part_rows.scalar_subquery().label("part_rows"),
        )
        for row in self._pages(query, batches.c.plan_key.is_not(None)):
            for wrong in _wrong_counts(row):
                yield row.id, wrong

    def _pages(self, query: Any, where: ColumnElement[bool]) -> Iterator[Row[Any]]:
        last = ""
        while True:
            with self._database.reading() as connection:
                page = connection.execute(query.where(where, batches.c.id > last).order_by(batches.c.id).limit(PAGE))
                found = page.all()
            yield from found
            if len(found) < PAGE:
                return
            last = found[-1].id


def _wrong_counts(row: Any) -> Iterator[str]:
    """One statement has read all of it, so it is of one moment."""
    if row.chunks_done != row.chunk_done:
        yield f"It counts {row.chunks_done:,} chunks as done, and {row.chunk_done:,} are."
    if row.chunks_total != row.chunk_total:
        yield f"It counts {row.chunks_total:,} chunks, and has {row.chunk_total:,}."
    if row.chunk_rows != row.part_rows:
        yield f"Its chunks count {row.chunk_rows:,} rows as done, and its parts have {row.part_rows:,}."
    if not row.dry_run and not row.part_rows <= row.rows_done <= row.rows_total:
        yield (f"It counts {row.rows_done:,} of {row.rows_total:,} rows as done, and its parts have {row.part_rows:,}.")
    if not row.dry_run and row.status == BatchStatus.COMPLETED and row.rows_done != row.rows_total:
        yield f"It completed with {row.rows_done:,} of {row.rows_total:,} rows."
