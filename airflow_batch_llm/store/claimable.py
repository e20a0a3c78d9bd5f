"""Which chunk comes next for a worker: found by index, however many chunks are waiting.

Chunks whose lease ran out come first, then the highest priority, then the oldest. For each pair of model and endpoint
that a worker serves, the index ``ix_chunks_claim`` has its chunks in that order already, so a look reads the first one
and sorts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, literal, select, union_all

from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.tables import batches, chunks, worker_models


@dataclass(frozen=True)
class Queue:
    """The chunks of one state for one model and endpoint, in the order in which they are handed out."""

    state: ChunkState
    model: str
    endpoint: str

    def first(self, now: ColumnElement[float], *columns: ColumnElement[Any]) -> Select[Any]:
        """Those columns of its first chunk that may be claimed."""
        query = select(*columns).select_from(chunks).join(batches, batches.c.id == chunks.c.batch_id)
        query = query.where(*self._claimable(now)).order_by(chunks.c.priority.desc(), chunks.c.id)
        return query.limit(1)

    def _claimable(self, now: ColumnElement[float]) -> Iterator[ColumnElement[bool]]:
        yield chunks.c.state == self.state
        yield chunks.c.model == self.model
        yield chunks.c.endpoint == self.endpoint
        yield batches.c.status == BatchStatus.IN_PROGRESS
        if self.state == ChunkState.LEASED:
            yield chunks.c.lease_until < now


def lock_next_chunk(connection: Connection, worker_id: str, now: ColumnElement[float]) -> int | None:
    """The id of the next chunk for a worker, locked; None where there is none that nobody else is just claiming.

    A chunk whose row another transaction has locked is passed over, and one that changed since the look is looked at
    again, so no two claims get the same.
    """
    for queue in _by_urgency(connection, _queues(connection, worker_id), now):
        free = queue.first(now, chunks.c.id).with_for_update(skip_locked=True, of=chunks, key_share=True)
        chunk_id: int | None = connection.scalar(free)
        if chunk_id is not None:
            return chunk_id
    return None


def _queues(connection: Connection, worker_id: str) -> list[Queue]:
    serves = select(worker_models.c.model, worker_models.c.endpoint).where(worker_models.c.worker_id == worker_id)
    pairs = connection.execute(serves).all()
    return [
        Queue(state, pair.model, pair.endpoint) for state in (ChunkState.LEASED, ChunkState.PENDING) for pair in pairs
    ]


def _by_urgency(connection: Connection, queues: list[Queue], now: ColumnElement[float]) -> list[Queue]:
    """The queues that have something, the one whose first chunk is to be done first at the front: one statement."""
    if not queues:
        return []
    firsts = [
        queue.first(now, literal(number).label("number"), chunks.c.priority, chunks.c.id).subquery()
        for number, queue in enumerate(queues)
    ]
    found = connection.execute(union_all(*(select(first) for first in firsts))).all()
    found = sorted(found, key=lambda row: (queues[row.number].state != ChunkState.LEASED, -row.priority, row.id))
    return [queues[row.number] for row in found]
