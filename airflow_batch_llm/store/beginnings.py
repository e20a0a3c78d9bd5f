"""The beginning of an attempt: its worker says that it is about to give its engine a row.

Only from then on can a row have ended the worker, so only an attempt that began counts against its chunk: see
``chunks.barren``, the attempts in a row that began, brought nothing and ended without a word.

Workers that registered the same server ask one engine. There a chunk whose rows must be alone begins once nothing that
another of them began is left, and while one is leased no other chunk begins: else the engine's death of the one row
would be charged to the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from airflow_batch_llm.models import ChunkState
from airflow_batch_llm.store.tables import attempts, chunks, workers


def server_of(connection: Connection, chunk_id: int, attempt: int) -> str | None:
    """The server that others may ask as well, which the worker of an attempt gives its rows to."""
    query = (
        select(workers.c.server)
        .join(attempts, attempts.c.worker_id == workers.c.id)
        .where(attempts.c.chunk_id == chunk_id, attempts.c.attempt == attempt)
    )
    server: str | None = connection.scalar(query)
    return server


def must_wait(connection: Connection, chunk: Mapping[str, Any], server: str, now: ColumnElement[float]) -> bool:
    """Whether other workers' rows at the server keep a leased chunk from beginning. The server's name is locked."""
    in_the_way = attempts.c.began_at.is_not(None) if chunk["alone"] else chunks.c.alone.is_(True)
    query = (
        select(chunks.c.id)
        .join(workers, workers.c.id == chunks.c.worker_id)
        .join(attempts, (attempts.c.chunk_id == chunks.c.id) & (attempts.c.attempt == chunks.c.attempt))
        .where(
            chunks.c.state == ChunkState.LEASED,
            chunks.c.lease_until > select(now).scalar_subquery(),
            workers.c.server == server,
            workers.c.id != chunk["worker_id"],
            in_the_way,
        )
    )
    return connection.scalar(query.limit(1)) is not None


def note_beginning(connection: Connection, chunk_id: int, attempt: int, now: ColumnElement[float]) -> bool:
    """Notes that an attempt began; false where it was noted before."""
    noted = connection.execute(
        update(attempts)
        .where(attempts.c.chunk_id == chunk_id, attempts.c.attempt == attempt, attempts.c.began_at.is_(None))
        .values(began_at=now)
    )
    return noted.rowcount > 0
