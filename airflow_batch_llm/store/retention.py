"""What has had its time, and that it went: the record says so before the bytes go.

So a process that dies in between leaves bytes that no record names, which the sweep of the storage finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from airflow_batch_llm.models import ENDED, LIVING
from airflow_batch_llm.store.batches import forget_batch
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.files import in_use
from airflow_batch_llm.store.index_files import forget_results
from airflow_batch_llm.store.tables import batches, duties, files, index_batches, index_files


@dataclass(frozen=True)
class EndedBatch:
    """An ended batch whose plan may go, but for what a retry and its results need."""

    id: str
    plan_key: str | None
    of_table: bool


def ended_at(table: FromClause = batches) -> ColumnElement[float]:
    """When a batch ended; null while it lives."""
    return func.coalesce(table.c.completed_at, table.c.failed_at, table.c.expired_at, table.c.cancelled_at)


class Retention:
    """What may be forgotten of files and batches of all teams, some at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def drop_files(self, *, grace: float, limit: int) -> list[str]:
        """Marks files as dropped that were deleted or have expired, and that nobody reads; gives their storage keys."""
        before = self._database.now() - grace
        due = and_(
            files.c.dropped_at.is_(None),
            or_(files.c.deleted_at < before, files.c.expires_at < before),
            ~in_use(files.c.id),
        )
        query = select(files.c.id, files.c.storage_key).where(due).limit(limit).with_for_update(skip_locked=True)
        with self._database.writing() as connection:
            found = connection.execute(query).all()
            ids = [file.id for file in found]
            connection.execute(update(files).where(files.c.id.in_(ids)).values(dropped_at=self._database.now()))
        return [file.storage_key for file in found]

    def drop_staged(self, *, grace: float, limit: int) -> list[EndedBatch]:
        """Marks batches as without their staged plan that ended a while ago, and gives them."""
        query = select(batches.c.id, batches.c.plan_key, batches.c.dataset).where(
            batches.c.staged_dropped_at.is_(None),
            batches.c.status.in_(ENDED),
            ended_at() < self._database.now() - grace,
        )
        with self._database.writing() as connection:
            found = connection.execute(query.limit(limit).with_for_update(skip_locked=True)).all()
            ids = [batch.id for batch in found]
            now = self._database.now()
            connection.execute(update(batches).where(batches.c.id.in_(ids)).values(staged_dropped_at=now))
        return [EndedBatch(batch.id, batch.plan_key, batch.dataset is not None) for batch in found]

    def drop_bytes(self, *, keep: float, limit: int) -> list[str]:
        """Marks batches as without any bytes that ended long enough ago, forgets what others would reuse of them, and
        gives their ids.

        A batch waits for a living generation after it, which may go on from it, and for its own result files.
        """
        with self._database.reading() as connection:
            due = connection.execute(
                select(batches.c.id, batches.c.team, batches.c.key).where(*self._bytes_due(keep)).limit(limit)
            ).all()
        return [batch.id for batch in due if self._drop_bytes(batch, keep)]

    def forget_batches(self, *, keep: float, limit: int) -> list[str]:
        """Forgets the records of batches without bytes whose key was not used for long; gives the ids.

        One whose end is still to be told to a webhook waits for that.
        """
        used = batches.alias("used")
        used_at = ended_at(used)
        before = self._database.now() - keep
        same_key = and_(used.c.team == batches.c.team, used.c.key == batches.c.key)
        query = select(batches.c.id).where(
            batches.c.bytes_dropped_at.is_not(None),
            ended_at() < before,
            ~exists().where(duties.c.batch_id == batches.c.id, duties.c.done.is_(False)),
            ~exists().where(same_key, or_(used_at.is_(None), used_at >= before, used.c.bytes_dropped_at.is_(None))),
        )
        with self._database.writing() as connection:
            found = list(connection.scalars(query.limit(limit).with_for_update(skip_locked=True)))
            for batch_id in found:
                forget_batch(connection, batch_id)
        return found

    def forget_files(self, *, keep: float, limit: int) -> int:
        """Forgets the records of files without bytes that no batch names; gives how many."""
        named = exists().where(
            or_(
                batches.c.input_file_id == files.c.id,
                batches.c.output_file_id == files.c.id,
                batches.c.error_file_id == files.c.id,
            )
        )
        query = select(files.c.id).where(files.c.dropped_at < self._database.now() - keep, ~named).limit(limit)
        with self._database.writing() as connection:
            found = list(connection.scalars(query.with_for_update(skip_locked=True)))
            connection.execute(delete(files).where(files.c.id.in_(found)))
        return len(found)

    def teams_with_unused_index(self) -> list[str]:
        """The teams that have index files whose results may not be used any more."""
        alive = exists().where(
            index_batches.c.file_id == index_files.c.id, index_batches.c.expires_at > self._database.now()
        )
        with self._database.reading() as connection:
            return list(connection.scalars(select(index_files.c.team).where(~alive).distinct()))

    def _bytes_due(self, keep: float) -> tuple[ColumnElement[bool], ...]:
        later = batches.alias("later")
        living = exists().where(
            later.c.team == batches.c.team,
            later.c.key == batches.c.key,
            later.c.generation > batches.c.generation,
            later.c.status.in_(LIVING),
        )
        has_file = exists().where(
            files.c.dropped_at.is_(None),
            or_(files.c.id == batches.c.output_file_id, files.c.id == batches.c.error_file_id),
        )
        ended = (batches.c.status.in_(ENDED), ended_at() < self._database.now() - keep)
        return batches.c.bytes_dropped_at.is_(None), *ended, ~living, ~has_file

    def _drop_bytes(self, batch: Any, keep: float) -> bool:
        now = self._database.now()
        with self._database.writing() as connection:
            _lock_generations(connection, batch)
            dropped = connection.execute(
                update(batches)
                .where(batches.c.id == batch.id, *self._bytes_due(keep))
                .values(bytes_dropped_at=now, staged_dropped_at=func.coalesce(batches.c.staged_dropped_at, now))
            )
            if dropped.rowcount:
                forget_results(connection, batch.id)
        return dropped.rowcount > 0


def _lock_generations(connection: Connection, batch: Any) -> None:
    """Whoever opens a generation locks the last one: so it is either seen, or sees that the bytes are gone."""
    same_key = (batches.c.team == batch.team, batches.c.key == batch.key)
    connection.execute(select(batches.c.id).where(*same_key).order_by(batches.c.id).with_for_update()).all()
