"""How the attempts at the chunks of a batch ended, and which of them were in trouble."""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, case, func, select

from airflow_batch_llm.models import ChunkState
from airflow_batch_llm.page_wire import MOST_TROUBLES, Attempts, Trouble
from airflow_batch_llm.store.tables import attempts, chunks, workers

RUNNING: Final = "running"
"""Of an attempt that holds its chunk's lease."""
LEASE_LOST: Final = "lease_lost"
"""What a claim writes of the attempt before it, which ended without a word."""
WELL: Final = (RUNNING, "committed", "drained", "stopped")
"""What becomes of an attempt in the course of things: also a worker that is shut down, a batch that is cancelled."""
MOST_DETAIL: Final = 500
"""Characters. Workers of this package send no detail, but it is a field of theirs."""


def attempts_at(connection: Connection, batch_id: str, at: float) -> Attempts:
    """All attempts at a batch's chunks by outcome, as they stand at a time, and the newest in trouble.

    One whose lease has run out counts as lost before another claims its chunk, too.
    """
    outcome = _outcome(at)
    how = outcome.label("how")  # a name of its own, so that it is not the column that is grouped by
    of_batch = select(how, func.count()).select_from(attempts.join(chunks, chunks.c.id == attempts.c.chunk_id))
    counted = of_batch.where(chunks.c.batch_id == batch_id).group_by(how)
    outcomes: dict[str, int] = dict(connection.execute(counted).tuples().all())
    in_trouble = any(name not in WELL for name in outcomes)
    return Attempts(
        total=sum(outcomes.values()),
        outcomes=outcomes,
        troubles=_troubles(connection, outcome, batch_id) if in_trouble else [],
    )


def holds_lease(at: float) -> ColumnElement[bool]:
    """Whether a row of ``attempts`` has the right to work on its row of ``chunks`` at that time."""
    return and_(
        chunks.c.state == ChunkState.LEASED,
        chunks.c.attempt == attempts.c.attempt,
        chunks.c.lease_until > at,
    )


def _outcome(at: float) -> ColumnElement[str]:
    return case((attempts.c.outcome.is_not(None), attempts.c.outcome), (holds_lease(at), RUNNING), else_=LEASE_LOST)


def _troubles(connection: Connection, outcome: ColumnElement[str], batch_id: str) -> list[Trouble]:
    query = (
        select(
            chunks.c.number.label("chunk"),
            attempts.c.attempt,
            func.coalesce(workers.c.name, attempts.c.worker_id).label("worker"),
            outcome.label("outcome"),
            func.substr(attempts.c.detail, 1, MOST_DETAIL).label("detail"),
            attempts.c.claimed_at,
            attempts.c.ended_at,
            attempts.c.rows,
            attempts.c.rows_lost,
        )
        .join(chunks, chunks.c.id == attempts.c.chunk_id)
        .outerjoin(workers, workers.c.id == attempts.c.worker_id)
        .where(chunks.c.batch_id == batch_id, outcome.not_in(WELL))
        .order_by(attempts.c.claimed_at.desc(), attempts.c.chunk_id.desc(), attempts.c.attempt.desc())
        .limit(MOST_TROUBLES)
    )
    return [Trouble(**row._mapping) for row in connection.execute(query)]
