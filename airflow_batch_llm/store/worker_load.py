"""What workers do and what waits for them, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, select

from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.batches import RATE_SECONDS
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.pools import serves
from airflow_batch_llm.store.tables import attempts, batches, chunks, parts, worker_models, workers

LISTED_SECONDS: Final = 86_400.0
"""How long a worker is listed after it was last seen."""
MOST_LISTED: Final = 500
"""One that starts again and again leaves a line each time."""


@dataclass(frozen=True)
class Held:
    """What a worker holds now."""

    chunks: int = 0
    rows: int = 0
    """Those of its chunks that are not done."""


@dataclass(frozen=True)
class Pace:
    """What was committed a second, over the last minute."""

    rows: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True)
class Load:
    """One look at the workers that a team's batches may go to, of one moment: ``at`` is the store's time then."""

    at: float
    workers: list[Mapping[str, Any]]
    """The records, those that are there first, then those that were seen last."""
    serves: dict[str, list[tuple[str, str]]]
    """By worker, model and endpoint."""
    held: dict[str, Held]
    paces: dict[str, Pace]
    queue: list[Row[Any]] = field(default_factory=list)
    """By model and endpoint, what of the team's waits or is in work."""


class WorkerLoad:
    """Looks at the workers of a team and those of all teams.

    What a worker of all teams does is counted for all of them, as numbers: of other teams' batches nothing is named.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def look(self, team: str) -> Load:
        with self._database.reading() as connection:
            at = float(connection.execute(select(self._database.now())).scalar_one())
            listed = self._listed(connection, team, at)
            ids = [worker.id for worker in listed]
            return Load(
                at=at,
                workers=[worker._asdict() for worker in listed],
                serves=_served(connection, ids),
                held=_held(connection, ids, at),
                paces=_paces(connection, ids, at),
                queue=_queue(connection, team),
            )

    def _listed(self, connection: Connection, team: str, at: float) -> list[Row[Any]]:
        query = select(workers).where(serves(team), workers.c.last_seen_at > at - LISTED_SECONDS)
        order = (workers.c.gone, workers.c.last_seen_at.desc(), workers.c.id)
        return list(connection.execute(query.order_by(*order).limit(MOST_LISTED)))


def _served(connection: Connection, ids: list[str]) -> dict[str, list[tuple[str, str]]]:
    query = select(worker_models.c.worker_id, worker_models.c.model, worker_models.c.endpoint)
    found: dict[str, list[tuple[str, str]]] = {}
    for worker_id, model, endpoint in connection.execute(query.where(worker_models.c.worker_id.in_(ids))):
        found.setdefault(worker_id, []).append((model, endpoint))
    return found


def _held(connection: Connection, ids: list[str], at: float) -> dict[str, Held]:
    query = (
        select(chunks.c.worker_id, func.count(), func.sum(chunks.c.rows - chunks.c.rows_done))
        .where(chunks.c.state == ChunkState.LEASED, chunks.c.lease_until > at, chunks.c.worker_id.in_(ids))
        .group_by(chunks.c.worker_id)
    )
    return {worker_id: Held(count, int(rows)) for worker_id, count, rows in connection.execute(query)}


def _paces(connection: Connection, ids: list[str], at: float) -> dict[str, Pace]:
    """By the index of the parts' times: only what was committed in the last minute is read."""
    tokens = func.sum(parts.c.prompt_tokens + parts.c.completion_tokens)
    same = and_(attempts.c.chunk_id == parts.c.chunk_id, attempts.c.attempt == parts.c.attempt)
    query = (
        select(attempts.c.worker_id, func.sum(parts.c.rows), tokens)
        .select_from(parts.join(attempts, same))
        .where(parts.c.committed_at > at - RATE_SECONDS, attempts.c.worker_id.in_(ids))
        .group_by(attempts.c.worker_id)
    )
    return {
        worker_id: Pace(float(rows) / RATE_SECONDS, float(tokens) / RATE_SECONDS)
        for worker_id, rows, tokens in connection.execute(query)
    }


def _queue(connection: Connection, team: str) -> list[Row[Any]]:
    left = chunks.c.rows - chunks.c.rows_done
    pending = chunks.c.state == ChunkState.PENDING
    query = (
        select(
            chunks.c.model,
            chunks.c.endpoint,
            func.count(chunks.c.batch_id.distinct()).label("batches"),
            _count(pending).label("chunks_pending"),
            _count(~pending).label("chunks_leased"),
            func.sum(left).label("rows_left"),
            func.sum(chunks.c.tokens * left / func.nullif(chunks.c.rows, 0)).label("tokens_left"),
            func.min(case((pending, batches.c.created_at))).label("oldest_at"),
        )
        .join(batches, batches.c.id == chunks.c.batch_id)
        .where(chunks.c.team == team, chunks.c.state.in_((ChunkState.PENDING, ChunkState.LEASED)))
        .where(batches.c.status == BatchStatus.IN_PROGRESS)
        .group_by(chunks.c.model, chunks.c.endpoint)
        .order_by(chunks.c.model, chunks.c.endpoint)
    )
    return list(connection.execute(query))


def _count(which: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((which, 1), else_=0))
