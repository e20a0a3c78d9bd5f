"""What the service must do for a batch, leased like a chunk so that no duty is done twice at once."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, case, insert, or_, select, update

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.locks import lock_batch
from airflow_batch_llm.store.tables import batches, duties


class DutyLostError(Exception):
    """Somebody else has the duty now, or its batch no longer needs it. Nothing was written."""


@dataclass(frozen=True)
class Duty:
    """One attempt at one duty for one batch."""

    batch_id: str
    kind: DutyKind
    attempt: int
    losses: int = 0
    """How many processes ended while they were at it, for want of memory say."""


def add_duty(connection: Connection, batch_id: str, kind: DutyKind) -> None:
    connection.execute(insert(duties).values(batch_id=batch_id, kind=kind, attempt=0, done=False))


def has_duty(connection: Connection, batch_id: str, kind: DutyKind) -> bool:
    query = select(duties.c.batch_id).where(duties.c.batch_id == batch_id, duties.c.kind == kind)
    return connection.execute(query).first() is not None


def check_held(connection: Connection, duty: Duty) -> None:
    """Raises :class:`DutyLostError` if a duty is not held any more."""
    if connection.execute(select(duties.c.batch_id).where(*_held(duty))).first() is None:
        raise DutyLostError(f"Attempt {duty.attempt} no longer holds the {duty.kind} duty of batch {duty.batch_id}.")


def end_duty(connection: Connection, duty: Duty) -> None:
    """Marks a duty done, inside the transaction of its effect. Raises :class:`DutyLostError` if it is not held."""
    ended = connection.execute(update(duties).where(*_held(duty)).values(done=True, lease_until=None))
    if ended.rowcount == 0:
        raise DutyLostError(f"Attempt {duty.attempt} no longer holds the {duty.kind} duty of batch {duty.batch_id}.")


def drop_duty(connection: Connection, batch_id: str, kind: DutyKind) -> None:
    """Takes a duty back whose batch no longer needs it; whoever is at it loses it."""
    connection.execute(
        update(duties).where(duties.c.batch_id == batch_id, duties.c.kind == kind).values(done=True, lease_until=None)
    )


class Duties:
    """Hands out duties, one holder at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, kind: DutyKind) -> bool:
        """Whether :meth:`claim` might give something: a look that no writer has to wait for."""
        with self._database.reading() as connection:
            return connection.execute(self._free(kind)).first() is not None

    def claim(self, kind: DutyKind, *, holder: str, lease_seconds: float) -> Duty | None:
        """The next duty that is due and that nobody holds: highest priority first, oldest first.

        But one at which more than one process ended comes after all the others.
        """
        free = self._free(kind).with_for_update(skip_locked=True, of=duties)
        with self._database.writing() as connection:
            row = connection.execute(free).first()
            if row is None:
                return None
            duty = Duty(row.batch_id, kind, row.attempt + 1, row.losses)
            connection.execute(
                update(duties)
                .where(duties.c.batch_id == duty.batch_id, duties.c.kind == kind)
                .values(
                    attempt=duty.attempt,
                    holder=holder,
                    lease_until=self._database.now() + lease_seconds,
                )
            )
        return duty

    def extend(self, duty: Duty, *, lease_seconds: float) -> None:
        with self._database.writing() as connection:
            extended = connection.execute(
                update(duties).where(*_held(duty)).values(lease_until=self._database.now() + lease_seconds)
            )
        if extended.rowcount == 0:
            raise DutyLostError(f"Attempt {duty.attempt} no longer holds the {duty.kind} duty of {duty.batch_id}.")

    def end(self, duty: Duty) -> None:
        """Marks a duty done that has no other effect in the store. Raises :class:`DutyLostError` if it is not held."""
        with self._database.writing() as connection:
            end_duty(connection, duty)

    def put_off(self, duty: Duty, *, trouble: str | None = None, seconds: float, lost: bool = False) -> None:
        """Gives a duty back to be tried again after a while, and perhaps says on its batch why.

        :param lost: whether this counts as the end of a process, which it nearly was.
        """
        with self._database.writing() as connection:
            if trouble is not None:
                lock_batch(connection, duty.batch_id)
            put_off = connection.execute(
                update(duties)
                .where(*_held(duty))
                .values(
                    lease_until=None,
                    not_before=self._database.now() + seconds,
                    losses=duties.c.losses + int(lost),
                )
            )
            if put_off.rowcount and trouble is not None:
                connection.execute(update(batches).where(batches.c.id == duty.batch_id).values(trouble=trouble))

    def say(self, duty: Duty, trouble: str) -> None:
        """Says on a duty's batch why it takes so long."""
        with self._database.writing() as connection:
            lock_batch(connection, duty.batch_id)
            if connection.execute(select(duties.c.batch_id).where(*_held(duty))).first() is not None:
                connection.execute(update(batches).where(batches.c.id == duty.batch_id).values(trouble=trouble))

    def holders(self) -> list[str]:
        """Who holds a duty now."""
        with self._database.reading() as connection:
            return list(connection.scalars(select(duties.c.holder).where(duties.c.lease_until.is_not(None)).distinct()))

    def free_those_of(self, holder: str, *, lost: bool = True) -> None:
        """Ends the leases of a process that is known to be dead.

        :param lost: whether it ended by itself. What a process held that was told to end is not to blame for it.
        """
        with self._database.writing() as connection:
            connection.execute(
                update(duties)
                .where(duties.c.holder == holder, duties.c.done.is_(False), duties.c.lease_until.is_not(None))
                .values(lease_until=None, losses=duties.c.losses + int(lost))
            )

    def _free(self, kind: DutyKind) -> Select[tuple[str, int, int]]:
        now = self._database.now()
        deadly = case((duties.c.losses > 1, duties.c.losses), else_=0)
        return (
            select(duties.c.batch_id, duties.c.attempt, duties.c.losses)
            .join(batches, batches.c.id == duties.c.batch_id)
            .where(
                duties.c.kind == kind,
                duties.c.done.is_(False),
                or_(duties.c.lease_until.is_(None), duties.c.lease_until < now),
                or_(duties.c.not_before.is_(None), duties.c.not_before < now),
            )
            .order_by(deadly, batches.c.priority.desc(), batches.c.created_at)
            .limit(1)
        )


def _held(duty: Duty) -> tuple[ColumnElement[bool], ...]:
    return (
        duties.c.batch_id == duty.batch_id,
        duties.c.kind == duty.kind,
        duties.c.attempt == duty.attempt,
        duties.c.lease_until.is_not(None),
        duties.c.done.is_(False),
    )
