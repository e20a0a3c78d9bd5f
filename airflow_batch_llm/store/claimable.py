"""Which chunk comes next for a worker: found by index, however many chunks are waiting.

Chunks whose lease ran out come first, then the order is that of :mod:`airflow_batch_llm.store.turns`. For one model,
endpoint and team (a *lane*) the index ``ix_chunks_claim`` has the waiting chunks in that order, so a claim reads the
first one of each lane and sorts nothing. Where the firsts of several teams are equals, that team is next for which the
fewest chunks are in work, and of those the one that this process has not served for longest; so with the lanes of one
team. The statements are built once: to build them anew took most of a claim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    bindparam,
    case,
    exists,
    func,
    select,
    tuple_,
)

from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.pools import may_be_done_by
from airflow_batch_llm.store.tables import batches, chunks, worker_models, workers

_WORKER: BindParameter[str] = bindparam("worker_id")
_SERVES = select(worker_models.c.model, worker_models.c.endpoint).where(worker_models.c.worker_id == _WORKER)
_SERVED = tuple_(chunks.c.model, chunks.c.endpoint).in_(_SERVES)


def _goes_on(chunk: FromClause) -> ColumnElement[bool]:
    """Whether a chunk's batch goes on. No join: with one, SQLite may start from the batches, and then has to sort."""
    going_on = (batches.c.status == BatchStatus.IN_PROGRESS, batches.c.paused.is_(None))
    return exists().where(batches.c.id == chunk.c.batch_id, *going_on)


@dataclass(frozen=True)
class Lane:
    """What a worker looks at one by one, as values or as expressions."""

    model: Any
    endpoint: Any
    team: Any


class ClaimableChunks:
    """Finds and locks the next chunk for a worker; ``now`` is the store's time."""

    def __init__(self, now: ColumnElement[float]) -> None:
        # A query of its own for the time: Postgres looks nothing up in an index by a clock that may move on meanwhile.
        expired = (chunks.c.state == ChunkState.LEASED, chunks.c.lease_until < select(now).scalar_subquery())
        may_be_done = (_SERVED, _goes_on(chunks), may_be_done_by(_WORKER))
        self.expired = _locked(_first(chunks, *expired, *may_be_done))
        """The next chunk whose lease ran out, of all that ``worker_id`` serves: never many at once."""
        self._numbers = itertools.count(1)
        self._served: dict[str | Lane, int] = {}
        """Which claim of this process was the last for each team and lane."""

    def lock_next(self, connection: Connection, worker_id: str) -> int | None:
        """The id of the next chunk, locked; None where there is none that nobody else is just claiming.

        A chunk whose row another transaction has locked is passed over, and one that changed since the look is looked
        at again, so no two claims get the same.
        """
        expired: int | None = connection.scalar(self.expired, {"worker_id": worker_id})
        if expired is not None:
            return expired
        found = connection.execute(FRONTS, {"worker_id": worker_id})
        fronts = {Lane(*row[:3]): row.id for row in found if row.id is not None}
        for lane in fronts if len(fronts) < 2 else self._by_urgency(connection, worker_id, fronts):
            waiting: int | None = connection.scalar(FIRST_WAITING, vars(lane))
            if waiting is not None:
                self._served[lane.team] = self._served[lane] = next(self._numbers)
                return waiting
        return None

    def _by_urgency(self, connection: Connection, worker_id: str, fronts: dict[Lane, int]) -> list[Lane]:
        """The lanes, the one whose first chunk is to be done first at the front."""
        query = select(chunks.c.id, chunks.c.priority, chunks.c.due).where(chunks.c.id.in_(fronts.values()))
        orders = {row.id: (-row.priority, row.due) for row in connection.execute(query)}
        several = len({lane.team for lane in fronts}) > 1
        counts = connection.execute(IN_WORK, {"worker_id": worker_id}).tuples().all() if several else ()
        in_work: dict[str, int] = dict(counts)

        def urgency(lane: Lane) -> tuple[float, ...]:
            served = (self._served.get(lane.team, 0), self._served.get(lane, 0))
            return (*orders[fronts[lane]], in_work.get(lane.team, 0), *served, fronts[lane])

        return sorted((lane for lane, first in fronts.items() if first in orders), key=urgency)


def _first(chunk: FromClause, *where: ColumnElement[bool]) -> Select[Any]:
    order = (chunk.c.priority.desc(), chunk.c.due, chunk.c.turn, chunk.c.id)
    return select(chunk.c.id).where(*where).order_by(*order).limit(1)


def _waiting(chunk: FromClause, lane: Any) -> Iterator[ColumnElement[bool]]:
    yield chunk.c.state == ChunkState.PENDING
    yield chunk.c.model == lane.model
    yield chunk.c.endpoint == lane.endpoint


def _locked(query: Select[Any]) -> Select[Any]:
    return query.with_for_update(skip_locked=True, of=chunks, key_share=True)


_NAMED = Lane(*map(bindparam, ("model", "endpoint", "team")))
FIRST_WAITING = _locked(_first(chunks, *_waiting(chunks, _NAMED), chunks.c.team == _NAMED.team, _goes_on(chunks)))
"""The next chunk of one lane (``model``, ``endpoint`` and ``team``) that nobody has claimed."""

IN_WORK = (
    select(chunks.c.team, func.count()).where(chunks.c.state == ChunkState.LEASED, _SERVED).group_by(chunks.c.team)
)
"""For each team how many chunks of what ``worker_id`` serves are in work."""


def _fronts() -> Select[Any]:
    """Goes from team to team by the index: it is as long as there are lanes with something in them, not as chunks."""
    serves_all = exists().where(workers.c.id == _WORKER, workers.c.all_teams.is_(True))
    beyond = chunks.alias("beyond")

    def next_team(lane: Any, *where: ColumnElement[bool]) -> Any:
        teams = select(beyond.c.team).where(*_waiting(beyond, lane), *where).order_by(beyond.c.team).limit(1)
        return teams.scalar_subquery()

    served = worker_models.c
    team = case((workers.c.all_teams.is_(True), next_team(served)), else_=workers.c.team).label("team")
    own = select(served.model, served.endpoint, team).join(workers, workers.c.id == served.worker_id)
    lanes = own.where(served.worker_id == _WORKER).cte("lanes", recursive=True)
    others = select(lanes.c.model, lanes.c.endpoint, next_team(lanes.c, beyond.c.team > lanes.c.team))
    lanes = lanes.union_all(others.where(lanes.c.team.is_not(None), serves_all))
    first = chunks.alias("first")
    front = _first(first, *_waiting(first, lanes.c), first.c.team == lanes.c.team, _goes_on(first))
    return select(*lanes.c, front.correlate(lanes).scalar_subquery().label("id")).where(lanes.c.team.is_not(None))


FRONTS = _fronts()
"""The lanes of ``worker_id``, each with its first waiting chunk, or null."""
