"""Which chunk comes next for a worker: found by index, however many chunks are waiting.

Chunks whose lease ran out come first, then the highest priority, then the oldest. For one model and endpoint the index
``ix_chunks_claim`` has the waiting chunks in that order, so a claim reads the first one and sorts nothing. A worker
that serves several looks at the first of each. The statements are built once: to build them anew took most of a claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    bindparam,
    exists,
    literal_column,
    select,
    tuple_,
    union_all,
)

from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.pools import may_be_done_by
from airflow_batch_llm.store.tables import batches, chunks, worker_models

Pair = tuple[str, str]
"""A model and an endpoint."""

_SERVES = select(worker_models.c.model, worker_models.c.endpoint).where(
    worker_models.c.worker_id == bindparam("worker_id")
)


def claimable() -> Iterator[ColumnElement[bool]]:
    """What a chunk must be to be claimed at all; the worker and the chunk's state apart.

    No join: with one, SQLite may start from the batches, and then has to sort.
    """
    going_on = (batches.c.status == BatchStatus.IN_PROGRESS, batches.c.paused.is_(None))
    yield exists().where(batches.c.id == chunks.c.batch_id, *going_on)
    yield may_be_done_by(bindparam("worker_id"))


class ClaimableChunks:
    """Finds and locks the next chunk for a worker; ``now`` is the store's time."""

    def __init__(self, now: ColumnElement[float]) -> None:
        # A query of its own for the time: Postgres looks nothing up in an index by a clock that may move on meanwhile.
        expired = (chunks.c.state == ChunkState.LEASED, chunks.c.lease_until < select(now).scalar_subquery())
        served = tuple_(chunks.c.model, chunks.c.endpoint).in_(_SERVES)
        self.expired = _locked(_first(chunks.c.id).where(*expired, served))
        """The next chunk whose lease ran out, of all that ``worker_id`` serves: never many at once."""

    def lock_next(self, connection: Connection, worker_id: str) -> int | None:
        """The id of the next chunk, locked; None where there is none that nobody else is just claiming.

        A chunk whose row another transaction has locked is passed over, and one that changed since the look is looked
        at again, so no two claims get the same.
        """
        expired: int | None = connection.scalar(self.expired, {"worker_id": worker_id})
        if expired is not None:
            return expired
        pairs = [(model, endpoint) for model, endpoint in connection.execute(_SERVES, {"worker_id": worker_id})]
        for model, endpoint in pairs if len(pairs) == 1 else _by_urgency(connection, worker_id, pairs):
            named = {"model": model, "endpoint": endpoint, "worker_id": worker_id}
            waiting: int | None = connection.scalar(FIRST_WAITING, named)
            if waiting is not None:
                return waiting
        return None


def _first(*columns: ColumnElement[Any]) -> Select[Any]:
    query = select(*columns).select_from(chunks).where(*claimable())
    return query.order_by(chunks.c.priority.desc(), chunks.c.id).limit(1)


def _waiting(suffix: str = "") -> Iterator[ColumnElement[bool]]:
    yield chunks.c.state == ChunkState.PENDING
    yield chunks.c.model == bindparam(f"model{suffix}")
    yield chunks.c.endpoint == bindparam(f"endpoint{suffix}")


def _locked(query: Select[Any]) -> Select[Any]:
    return query.with_for_update(skip_locked=True, of=chunks, key_share=True)


FIRST_WAITING = _locked(_first(chunks.c.id).where(*_waiting()))
"""The next chunk of one ``model`` and ``endpoint`` that nobody has claimed."""


def _by_urgency(connection: Connection, worker_id: str, pairs: list[Pair]) -> list[Pair]:
    """The pairs for which something waits, the one whose first chunk is to be done first at the front."""
    if not pairs:
        return []
    named = {
        f"{name}{number}": value
        for number, pair in enumerate(pairs)
        for name, value in zip(("model", "endpoint"), pair, strict=True)
    }
    found = connection.execute(_firsts(len(pairs)), named | {"worker_id": worker_id}).all()
    return [pairs[row.number] for row in sorted(found, key=lambda row: (-row.priority, row.id))]


@cache
def _firsts(count: int) -> CompoundSelect[Any]:
    """The first waiting chunk of each of so many pairs."""
    firsts = (
        _first(literal_column(str(number)).label("number"), chunks.c.priority, chunks.c.id)
        .where(*_waiting(str(number)))
        .subquery()
        for number in range(count)
    )
    return union_all(*(select(first) for first in firsts))
