"""A batch paused and resumed: of a paused one no chunk is claimed, and all else goes on as ever.

What workers hold goes on to its end, and a chunk that comes back waits with the others. The batch is planned, is
cancelled, expires and ends as if it went on; a batch that ends, or is ending, is not paused any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Row, select, update

from airflow_batch_llm.errors import ConflictError
from airflow_batch_llm.models import BatchStatus, ChunkState, PauseReason
from airflow_batch_llm.store.acts import note_act
from airflow_batch_llm.store.batches import no_such_batch
from airflow_batch_llm.store.canaries import pass_canary
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.life import settle
from airflow_batch_llm.store.locks import lock_batch
from airflow_batch_llm.store.tables import batches, chunks
from airflow_batch_llm.store.turns import let_wait, lock_turns

PAUSABLE: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


class Pauses:
    """Holds batches back, each for one reason at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @tried_again
    def pause(self, team: str, batch_id: str, reason: PauseReason, *, by: str | None = None) -> Mapping[str, Any]:
        """Holds a batch back from here on: a claim that begins afterwards gets none of its chunks.

        Of a batch that is paused already the first reason stays, but what a person asks for replaces it: then nothing
        but a person's word lets the batch go on. Raises :class:`ConflictError` for one that has ended or is ending.
        """
        with self._database.writing() as connection:
            batch = _locked(connection, team, batch_id, "paused")
            if batch.paused is None:
                hold_chunks(connection, batch_id)
            if batch.paused is None or reason == PauseReason.REQUESTED:
                connection.execute(update(batches).where(batches.c.id == batch_id).values(paused=reason))
                if batch.paused != reason:
                    note_act(connection, self._database, batch_id, "pause", by)
            return _record(connection, batch_id)

    @tried_again
    def resume(
        self, team: str, batch_id: str, *, reason: PauseReason | None = None, by: str | None = None
    ) -> Mapping[str, Any]:
        """Lets a batch go on; one that is not paused stays as it is.

        With a ``reason`` only one that is paused for that; without one, as a person asks, it goes on whether anybody
        watches it or not. One whose canary is done and not judged, but that was paused for another reason, is paused
        for its canary then. Raises :class:`ConflictError` for one that has ended or is ending.
        """
        with self._database.writing() as connection:
            lock_turns(connection, self._database, batch_id)
            batch = _locked(connection, team, batch_id, "resumed")
            if batch.paused is not None and reason in (None, batch.paused):
                note_act(connection, self._database, batch_id, "resume", by)
                self._let_go_on(connection, batch)
                if reason is None:
                    connection.execute(update(batches).where(batches.c.id == batch_id).values(unwatched_at=None))
            return _record(connection, batch_id)

    @tried_again
    def resume_unwatched(self, batch_id: str) -> None:
        """Lets a batch go on that is paused since nobody watched it; any other stays as it is."""
        with self._database.writing() as connection:
            lock_turns(connection, self._database, batch_id)
            batch = lock_batch(connection, batch_id)
            if batch is not None and batch.status in PAUSABLE and batch.paused == PauseReason.UNWATCHED:
                self._let_go_on(connection, batch)

    def _let_go_on(self, connection: Connection, batch: Row[Any]) -> None:
        if batch.paused == PauseReason.CANARY:
            pass_canary(connection, batch.id)
        let_wait(connection, batch)
        connection.execute(update(batches).where(batches.c.id == batch.id).values(paused=None))
        settle(connection, self._database, batch.id)


def _locked(connection: Connection, team: str, batch_id: str, done: str) -> Row[Any]:
    batch = lock_batch(connection, batch_id)
    if batch is None or batch.team != team:
        raise no_such_batch(batch_id)
    if batch.status not in PAUSABLE:
        raise ConflictError(
            f"Batch {batch_id} is {batch.status}: only one that is validating or in progress can be {done}. "
            "Nothing was changed.",
            code="batch_ending",
            param="batch_id",
        )
    return batch


def hold_chunks(connection: Connection, batch_id: str) -> None:
    """Takes what waits of a batch out of the queue.

    A chunk that is just being claimed is waited for, and is the worker's then.
    """
    waiting = (chunks.c.batch_id == batch_id, chunks.c.state == ChunkState.PENDING)
    connection.execute(update(chunks).where(*waiting).values(state=ChunkState.HELD))


def _record(connection: Connection, batch_id: str) -> Mapping[str, Any]:
    return connection.execute(select(batches).where(batches.c.id == batch_id)).one()._asdict()
