"""All that the store has to tell of one batch beside its record, in one view of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from airflow_batch_llm.page_wire import Act, Attempts, GenerationLine, Timeline, WorkerOnBatch
from airflow_batch_llm.store.acts import acts_of
from airflow_batch_llm.store.attempts import attempts_at
from airflow_batch_llm.store.chunk_counts import ChunkCounts, chunk_counts
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.generations import generations
from airflow_batch_llm.store.timelines import first_commit, timeline
from airflow_batch_llm.store.workers_on_batch import workers_on


@dataclass(frozen=True)
class Story:
    at: float
    """The store's time."""
    first_commit: float | None
    timeline: Timeline
    chunks: ChunkCounts
    workers: list[WorkerOnBatch]
    attempts: Attempts
    acts: list[Act]
    generations: list[GenerationLine]


class Stories:
    """Reads what became of single batches. Not a look at them: who reads it keeps none going."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, record: Mapping[str, Any]) -> Story:
        """The story of a stored batch. Of one that is gone meanwhile nothing is left but empty lists and zeros."""
        batch_id = record["id"]
        with self._database.reading() as connection:
            # One time for all of it. Also: Postgres uses no index for what is compared with its clock itself.
            at: float = connection.execute(select(self._database.now())).scalar_one()
            return Story(
                at=at,
                first_commit=first_commit(connection, batch_id),
                timeline=timeline(connection, batch_id),
                chunks=chunk_counts(connection, batch_id, at),
                workers=workers_on(connection, batch_id, at),
                attempts=attempts_at(connection, batch_id, at),
                acts=acts_of(connection, batch_id),
                generations=generations(connection, record["team"], record["key"]),
            )
