"""Who cleans now: one lease for all replicas of a service, and how far the sweep of the storage is."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import cleaning

_NAME: Final = "storage"


class CleaningLostError(Exception):
    """Somebody else cleans now."""


@dataclass(frozen=True)
class Turn:
    """The right of one process to clean, until its lease ends."""

    attempt: int
    store_id: str
    """What the store is called in the storage that it belongs to."""
    now: float
    """The store's time."""
    place: str
    """The last key that the sweep has seen; empty at its beginning."""
    swept_at: float | None
    """When the last sweep began that reached the end."""


class Cleanings:
    """The lease of who cleans; it needs no batch, so it has a line of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, holder: str, *, lease_seconds: float) -> Turn | None:
        """The right to clean, or None while somebody has it or nothing is due."""
        if not self._due():
            return None
        now = self._database.now()
        with self._database.writing() as connection:
            row = connection.execute(
                select(cleaning, now.label("now")).where(*self._free()).with_for_update(skip_locked=True)
            ).first()
            if row is None:
                return None
            connection.execute(
                update(cleaning).values(attempt=row.attempt + 1, holder=holder, lease_until=now + lease_seconds)
            )
        return Turn(row.attempt + 1, row.store_id, row.now, row.place or "", row.swept_at)

    def extend(self, turn: Turn, *, lease_seconds: float) -> None:
        """Raises :class:`CleaningLostError` where the turn is over."""
        self._change(turn, lease_until=self._database.now() + lease_seconds)

    def note(self, turn: Turn, **values: Any) -> None:
        """Writes down how far the sweep is (``place``, ``swept_at``), or what troubles it (``trouble``)."""
        self._change(turn, **values)

    def end(self, turn: Turn, *, seconds: float) -> None:
        """Gives the turn back; the next one is due after a while."""
        self._change(turn, lease_until=None, not_before=self._database.now() + seconds)

    def store_id(self) -> str | None:
        """What this store is called in its storage; None if nobody has cleaned yet."""
        with self._database.reading() as connection:
            found: str | None = connection.scalar(select(cleaning.c.store_id))
        return found

    def trouble(self) -> str | None:
        """What keeps the storage from being swept, if something does."""
        with self._database.reading() as connection:
            found: str | None = connection.scalar(select(cleaning.c.trouble))
        return found

    def _due(self) -> bool:
        """A look that no writer has to wait for."""
        self._make()
        with self._database.reading() as connection:
            return connection.execute(select(cleaning.c.name).where(*self._free())).first() is not None

    def _free(self) -> tuple[ColumnElement[bool], ...]:
        now = self._database.now()
        return (
            or_(cleaning.c.lease_until.is_(None), cleaning.c.lease_until < now),
            or_(cleaning.c.not_before.is_(None), cleaning.c.not_before <= now),
        )

    def _make(self) -> None:
        with self._database.reading() as connection:
            if connection.execute(select(cleaning.c.name)).first() is not None:
                return
        try:
            with self._database.writing() as connection:
                connection.execute(insert(cleaning).values(name=_NAME, store_id=uuid.uuid4().hex, attempt=0))
        except IntegrityError:
            pass  # another process was quicker

    def _change(self, turn: Turn, **values: Any) -> None:
        with self._database.writing() as connection:
            changed = connection.execute(
                update(cleaning)
                .where(cleaning.c.attempt == turn.attempt, cleaning.c.lease_until.is_not(None))
                .values(**values)
            )
        if changed.rowcount == 0:
            raise CleaningLostError(f"Attempt {turn.attempt} at cleaning is over: another process cleans now.")
