"""The lives that a batch has had under its key."""

from __future__ import annotations

from sqlalchemy import Connection, select

from airflow_batch_llm.page_wire import MOST_GENERATIONS, GenerationLine
from airflow_batch_llm.store.tables import batches


def generations(connection: Connection, team: str, key: str) -> list[GenerationLine]:
    """The newest generations under a key, the last one first; nothing where there is one alone."""
    query = select(batches.c.id, batches.c.generation, batches.c.status, batches.c.created_at)
    query = query.where(batches.c.team == team, batches.c.key == key).order_by(batches.c.generation.desc())
    found = [
        GenerationLine(id=batch_id, generation=number, status=status, created_at=int(created_at))
        for batch_id, number, status, created_at in connection.execute(query.limit(MOST_GENERATIONS)).tuples()
    ]
    return found if len(found) > 1 else []
