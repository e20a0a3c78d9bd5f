"""Row locks on batches, the first that every transaction takes which changes what hangs on one.

Postgres has two that matter here. What changes a batch, its chunks or its duties takes :func:`lock_batch`, which lets
others go on referring to the batch. What takes the batch away, or what refers to it, takes :func:`lock_batch_whole`.
SQLite has one writer at a time and no row locks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, select

from airflow_batch_llm.store.tables import batches, chunks


def lock_batch(connection: Connection, batch_id: str) -> Row[Any] | None:
    """The batch as it stands, changed by nobody else until the transaction ends; None where there is none."""
    query = select(batches).where(batches.c.id == batch_id)
    return connection.execute(query.with_for_update(key_share=True)).first()


def lock_batch_whole(connection: Connection, batch_id: str) -> Row[Any] | None:
    """The same, and nobody can come to refer to the batch either."""
    return connection.execute(select(batches).where(batches.c.id == batch_id).with_for_update()).first()


def lock_batch_of_chunk(connection: Connection, chunk_id: int) -> Row[Any] | None:
    """The batch that a chunk is of, as :func:`lock_batch` gives it."""
    of_chunk = select(chunks.c.batch_id).where(chunks.c.id == chunk_id).scalar_subquery()
    return connection.execute(select(batches).where(batches.c.id == of_chunk).with_for_update(key_share=True)).first()


def lock_batches(connection: Connection, batch_ids: Collection[str]) -> None:
    """Several batches as :func:`lock_batch` locks one, in the order that everybody takes them in."""
    query = select(batches.c.id).where(batches.c.id.in_(batch_ids)).order_by(batches.c.id)
    connection.execute(query.with_for_update(key_share=True)).all()


def keep_batches(connection: Connection, batch_ids: Collection[str]) -> list[str]:
    """Those of the batches that there are; they stay until the transaction ends, though they may change."""
    query = select(batches.c.id).where(batches.c.id.in_(batch_ids)).order_by(batches.c.id)
    return list(connection.scalars(query.with_for_update(read=True, key_share=True)))
