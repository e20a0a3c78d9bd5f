"""The order in which waiting chunks are claimed, kept in the chunks themselves so that a claim reads it from an index.

1. **Priority** is strict: while a chunk of a higher one waits, none of a lower one is claimed. That is what operators
   of such queues ask of it: today's run goes before a year of backfill, at once and whole, and nobody has to work out
   what a weight means.
2. **Deadlines**: within a priority the earliest goes first, and what has none comes last.
3. **Turns**: among equals teams take turns, and within a team its groups (in Airflow: its Dags) do, a chunk each. A
   group that comes new has its first chunk done after at most one chunk of each other group of its team, however many
   batches or rows those have.

What bounds the wait of a low priority is therefore its deadline: a batch that has a quarter of its time left is raised
above all priorities that can be asked for but the highest, and goes before others of that whose deadline is later. (A
priority that grew with age would let yesterday's backfill overtake today's run, which is what nobody wants.) A batch
without a deadline may wait: it has said so.

A deadline counts as exactly as it was given: one that was a day off counts by about two hours. So batches that were
submitted with the same window at nearly the same time are equals and take turns, as those without one do.

A chunk gets the number of its turn when it comes to wait: a group's chunks have successive turns, the first of them
that of the chunk that is to be claimed next. Thus two groups alternate from the moment at which the later one comes,
and a batch that was paused does not catch up on what it missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, select, update

from airflow_batch_llm.models import GREATEST_PRIORITY, BatchStatus, ChunkState
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import NO_DUE, batches, chunks

RAISED_PRIORITY: Final = GREATEST_PRIORITY
"""Of a batch whose deadline is near: the highest that can be asked for."""
RAISED_SHARE: Final = 0.25
"""Which share of its time a batch has left when it is raised."""
_EXACTNESS: Final = 8
"""A deadline counts to this part of the time that there was until it."""
_UNDONE: Final = (ChunkState.PENDING, ChunkState.HELD, ChunkState.LATER, ChunkState.LEASED)


@dataclass(frozen=True)
class Line:
    """Chunks that are equals: their turns alone say which of them is next."""

    team: str
    model: str
    endpoint: str
    priority: int
    due: float

    def waiting(self) -> tuple[ColumnElement[bool], ...]:
        """Which rows of ``chunks`` wait in it, in the order of the index that claims use."""
        columns = (chunks.c.team, chunks.c.model, chunks.c.endpoint, chunks.c.priority, chunks.c.due)
        same = (column == value for column, value in zip(columns, astuple(self), strict=True))
        return chunks.c.state == ChunkState.PENDING, *same


def due_of(batch: Mapping[str, Any]) -> float:
    """The deadline by which a batch's chunks are ordered, in seconds since 1970, rounded down as its length allows."""
    ends, begun = batch["expires_at"], batch["created_at"]
    if ends is None:
        return NO_DUE
    step = 2.0 ** math.floor(math.log2(max(1.0, (ends - begun) / _EXACTNESS)))
    return float(math.floor(ends / step) * step)


def lock_turns(connection: Connection, database: Database, batch_id: str) -> None:
    """Keeps others from giving out turns to batches of the same team meanwhile: before the batch's row is locked."""
    team = connection.scalar(select(batches.c.team).where(batches.c.id == batch_id))
    database.lock_name(connection, f"turns {team}")


def first_turn(connection: Connection, line: Line, fair_group: str) -> int:
    """The turn of the first of a group's chunks that come to wait in a line, by a caller of :func:`lock_turns`."""
    next_one = connection.scalar(select(chunks.c.turn).where(*line.waiting()).order_by(chunks.c.turn).limit(1)) or 0
    of_group = select(batches.c.id).where(
        batches.c.team == line.team, batches.c.fair_group == fair_group, batches.c.status == BatchStatus.IN_PROGRESS
    )
    last = connection.scalar(select(func.max(chunks.c.turn)).where(*line.waiting(), chunks.c.batch_id.in_(of_group)))
    return int(next_one) if last is None else max(int(next_one), last + 1)


def let_wait(connection: Connection, batch: Row[Any]) -> None:
    """Lets the chunks of a batch be claimed that were held back, from its group's turn on."""
    held = (chunks.c.batch_id == batch.id, chunks.c.state == ChunkState.HELD)
    first = connection.execute(select(chunks).where(*held).order_by(chunks.c.turn).limit(1)).first()
    if first is not None:
        moved = _moved(connection, batch, first, first.priority)
        connection.execute(update(chunks).where(*held).values(state=ChunkState.PENDING, turn=chunks.c.turn + moved))


def raise_batch(connection: Connection, batch: Row[Any]) -> None:
    """Gives what is undone of a batch whose deadline is near the highest priority; once."""
    undone = (chunks.c.batch_id == batch.id, chunks.c.state.in_(_UNDONE), chunks.c.priority < RAISED_PRIORITY)
    first = connection.execute(select(chunks).where(*undone).order_by(chunks.c.turn).limit(1)).first()
    if first is not None:
        moved = _moved(connection, batch, first, RAISED_PRIORITY)
        values = {"priority": RAISED_PRIORITY, "turn": chunks.c.turn + moved}
        connection.execute(update(chunks).where(*undone).values(values))
    connection.execute(update(batches).where(batches.c.id == batch.id).values(raised=True))


def near_deadline(now: ColumnElement[float]) -> tuple[ColumnElement[bool], ...]:
    """Which batches are to be raised."""
    left = RAISED_SHARE * (batches.c.expires_at - batches.c.created_at)
    return batches.c.status == BatchStatus.IN_PROGRESS, ~batches.c.raised, batches.c.expires_at - left <= now


def _moved(connection: Connection, batch: Row[Any], first: Row[Any], priority: int) -> int:
    """By how many turns a batch's chunks move, of which ``first`` has the earliest."""
    line = Line(batch.team, first.model, first.endpoint, priority, first.due)
    return first_turn(connection, line, batch.fair_group) - int(first.turn)
