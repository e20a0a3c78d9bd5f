"""The first rows of a batch, its canary: while they run the others are held back, and then all waits to be judged."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, exists, select, update

from airflow_batch_llm.models import CanaryState, ChunkState, PauseReason
from airflow_batch_llm.store.tables import batches, chunks

_AT_WORK: Final = (ChunkState.PENDING, ChunkState.LEASED, ChunkState.HELD)


def pause_after_canary(connection: Connection, batch: Any) -> None:
    """Pauses a batch whose canary is done, unless it is paused already: then whoever resumes it does this.

    The caller holds the batch's row. What is done of the canary needs no mark, also where one of its chunks was split:
    as long as it is not judged, every chunk that is not held back is its.
    """
    if batch.canary != CanaryState.OPEN or batch.paused is not None:
        return
    at_work = select(exists().where(chunks.c.batch_id == batch.id, chunks.c.state.in_(_AT_WORK)))
    if not connection.scalar(at_work):
        connection.execute(update(batches).where(batches.c.id == batch.id).values(paused=PauseReason.CANARY))


def pass_canary(connection: Connection, batch_id: str) -> None:
    """The canary has passed: the other chunks wait like any that are held back. The caller holds the batch's row, and
    gives them their turn."""
    waiting = (chunks.c.batch_id == batch_id, chunks.c.state == ChunkState.LATER)
    connection.execute(update(chunks).where(*waiting).values(state=ChunkState.HELD))
    open_one = (batches.c.id == batch_id, batches.c.canary == CanaryState.OPEN)
    connection.execute(update(batches).where(*open_one).values(canary=CanaryState.PASSED))
