"""The workers that have a batch's chunks now, and what they have done of it."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, func, select

from airflow_batch_llm.page_wire import WorkerOnBatch
from airflow_batch_llm.store.attempts import holds_lease
from airflow_batch_llm.store.batches import RATE_SECONDS
from airflow_batch_llm.store.tables import attempts, chunks, parts, workers


def workers_on(connection: Connection, batch_id: str, at: float) -> list[WorkerOnBatch]:
    """Those that hold a lease of one of its chunks at a time, by name."""
    query = (
        select(workers.c.id, workers.c.name, workers.c.last_seen_at, func.count())
        .join(attempts, attempts.c.worker_id == workers.c.id)
        .join(chunks, chunks.c.id == attempts.c.chunk_id)
        .where(chunks.c.batch_id == batch_id, holds_lease(at))
        .group_by(workers.c.id, workers.c.name, workers.c.last_seen_at)
        .order_by(workers.c.name, workers.c.id)
    )
    holding = connection.execute(query).tuples().all()
    ids = [worker_id for worker_id, *_ in holding]
    if not ids:
        return []
    done, lately = _done(connection, batch_id, ids), _lately(connection, batch_id, ids, at)
    return [
        WorkerOnBatch(
            worker_id=worker_id,
            name=name,
            chunks=held,
            rows_done=done[worker_id],
            rows_per_second=lately.get(worker_id),
            last_seen_at=seen_at,
        )
        for worker_id, name, seen_at, held in holding
    ]


def _done(connection: Connection, batch_id: str, worker_ids: Collection[str]) -> dict[str, int]:
    """Rows of the batch that each has done in all its attempts."""
    query = (
        select(attempts.c.worker_id, func.sum(attempts.c.rows))
        .join(chunks, chunks.c.id == attempts.c.chunk_id)
        .where(chunks.c.batch_id == batch_id, attempts.c.worker_id.in_(worker_ids))
        .group_by(attempts.c.worker_id)
    )
    return dict(connection.execute(query).tuples().all())


def _lately(connection: Connection, batch_id: str, worker_ids: Collection[str], at: float) -> dict[str, float]:
    """Rows a second over the last minute, or over the time since a worker that is newer came to the batch."""
    of_batch = (chunks.c.batch_id == batch_id, attempts.c.worker_id.in_(worker_ids))
    came = (
        select(attempts.c.worker_id, (at - func.min(attempts.c.claimed_at)).label("age"))
        .join(chunks, chunks.c.id == attempts.c.chunk_id)
        .where(*of_batch)
        .group_by(attempts.c.worker_id)
        .subquery()
    )
    query = (
        select(attempts.c.worker_id, func.sum(parts.c.rows), func.max(came.c.age))
        .join(attempts, (attempts.c.chunk_id == parts.c.chunk_id) & (attempts.c.attempt == parts.c.attempt))
        .join(came, came.c.worker_id == attempts.c.worker_id)
        .where(parts.c.batch_id == batch_id, parts.c.committed_at > at - RATE_SECONDS)
        .group_by(attempts.c.worker_id)
    )
    found = connection.execute(query).tuples()
    return {worker_id: round(rows / max(1.0, min(RATE_SECONDS, age)), 2) for worker_id, rows, age in found}
