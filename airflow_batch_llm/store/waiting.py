"""How a chunk waits that nobody works on: to be claimed, or held back with its batch."""

from __future__ import annotations

from sqlalchemy import Connection, select

from airflow_batch_llm.models import ChunkState
from airflow_batch_llm.store.tables import batches


def waiting_state(paused: str | None) -> ChunkState:
    """The state in which the chunks of a batch wait: held back while it is ``paused``.

    A state of its own keeps a claim a look into an index, however many chunks of paused batches there are.
    """
    return ChunkState.PENDING if paused is None else ChunkState.HELD


def waiting_state_in(connection: Connection, batch_id: str) -> ChunkState:
    """The same for a batch whose row the caller has locked: it is not paused or resumed meanwhile."""
    return waiting_state(connection.scalar(select(batches.c.paused).where(batches.c.id == batch_id)))
