"""Who did what with a batch: a line for each act that changed something, in the transaction of the change itself.

What the service does of its own accord (it expires batches, and pauses them for their canary or since nobody watches
them) is nobody's act. Acts go with the record of their batch.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, insert, select

from airflow_batch_llm.page_wire import MOST_ACTS, Act
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import acts

What = Literal["submit", "cancel", "retry", "pause", "resume"]


def note_act(connection: Connection, database: Database, batch_id: str, act: What, by: str | None) -> None:
    """Notes an act that has just changed a batch, whose row the caller holds; nothing where nobody is named."""
    if by is not None:
        connection.execute(insert(acts).values(batch_id=batch_id, at=database.now(), act=act, by=by))


def acts_of(connection: Connection, batch_id: str) -> list[Act]:
    """The newest acts, the last one first."""
    query = select(acts.c.at, acts.c.act, acts.c.by).where(acts.c.batch_id == batch_id)
    newest = query.order_by(acts.c.id.desc()).limit(MOST_ACTS)
    return [Act(**row._mapping) for row in connection.execute(newest)]
