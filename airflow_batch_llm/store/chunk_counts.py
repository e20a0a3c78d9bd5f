"""How the chunks of a batch stand."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from airflow_batch_llm.models import ChunkState
from airflow_batch_llm.store.tables import chunks


@dataclass(frozen=True)
class ChunkCounts:
    """Chunks of a batch by what can become of them, and the rows of all of them, however often they were cut."""

    done: int
    leased: int
    pending: int
    """They wait, also for a batch to be resumed, or for the canary; those among them whose worker is gone, too."""
    rows: int


def chunk_counts(connection: Connection, batch_id: str, at: float) -> ChunkCounts:
    """How they stand at a time of the store's clock."""
    lost = (chunks.c.state == ChunkState.LEASED) & (chunks.c.lease_until <= at)
    state = case((lost, ChunkState.PENDING), else_=chunks.c.state).label("stands")
    query = select(state, func.count(), func.sum(chunks.c.rows)).where(chunks.c.batch_id == batch_id).group_by(state)
    found = {name: (count, rows) for name, count, rows in connection.execute(query).tuples()}
    waiting = (ChunkState.PENDING, ChunkState.HELD, ChunkState.LATER)
    return ChunkCounts(
        done=found.get(ChunkState.DONE, (0, 0))[0],
        leased=found.get(ChunkState.LEASED, (0, 0))[0],
        pending=sum(found.get(name, (0, 0))[0] for name in waiting),
        rows=sum(rows for _, rows in found.values()),
    )
