"""Batches: submitted under a key, planned, worked through, ended once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Double, and_, case, func, insert, literal, or_, select, update

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.models import ENDED, BatchStatus, ChunkState, DutyKind
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duty, DutyLostError, add_duty, drop_duty, end_duty, has_duty
from airflow_batch_llm.store.files import StoredFile, held_file, insert_file
from airflow_batch_llm.store.tables import batches, chunks, parts
from airflow_batch_llm.wire import window_seconds

RATE_SECONDS: Final = 60.0
"""Over how long the rate of a batch is taken: long enough to smooth the flushes of parts."""

_SUPERSEDED_BY_NEW_GENERATION: Final = frozenset(
    {BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED, BatchStatus.CANCELLING}
)
_RETRIED: Final = frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
_REPEATED: Final = (
    *("key", "series", "holder", "content_sha256", "endpoint", "model", "dataset", "input_file_id"),
    *("completion_window", "output_seconds", "metadata", "priority"),
)
"""What a retry has in common with the batch that it repeats. A deadline has passed, or is not to be met twice."""
_CANCELLABLE: Final = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)


@dataclass(frozen=True, kw_only=True)
class NewBatch:
    """A batch that was checked and may be stored, of a table or of a request file.

    ``content_sha256`` is over all that decides its results. ``deadline`` is in seconds since 1970.
    """

    content_sha256: str
    endpoint: str
    model: str | None
    """None for a request file, whose lines say it."""
    dataset: dict[str, Any] | None = None
    input_file_id: str | None = None
    metadata: dict[str, str] | None = None
    completion_window: str | None = None
    window_seconds: int | None = None
    deadline: float | None = None
    output_seconds: int | None = None
    key: str | None = None
    series: str | None = None
    holder: str | None = None
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class PlannedChunk:
    number: int
    rows: int
    tokens: int
    storage_key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A staged plan: real once :meth:`Batches.activate` has taken it."""

    storage_key: str
    rows_total: int
    rows_done: int
    """Rows that have their result already: those that cannot be asked, and those that an earlier generation did."""
    rows_failed: int
    """Rows that cannot be asked (malformed, not text …)."""
    chunks: list[PlannedChunk]
    model: str | None = None
    """Of a request file, whose lines say it."""


@dataclass(frozen=True)
class Rate:
    """What was committed over the last minute, per second."""

    rows: float
    tokens: float


class Batches:
    """The batches of all teams; every look that a client causes names one team."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, team: str, new: NewBatch) -> Mapping[str, Any]:
        """Stores a batch, or finds the one that lives (or completed) under its key, and makes ``holder`` its holder.

        Living batches of the same series under other keys are cancelled. Raises :class:`ConflictError` where the key
        is taken by a batch of other content.
        """
        batch_id = f"batch_{uuid.uuid4().hex}"
        key = new.key or batch_id
        with self._database.writing() as connection:
            last = self._last_generation(connection, team, key)
            if last is not None and last.status not in _SUPERSEDED_BY_NEW_GENERATION:
                return self._attach(connection, last, new)
            generation = last.generation + 1 if last is not None else 1
            self._insert(connection, team, batch_id, key, generation, new)
            self._cancel_series(connection, team, new.series, batch_id)
            return self._row(connection, batch_id)

    def get(self, team: str, batch_id: str) -> Mapping[str, Any]:
        with self._database.reading() as connection:
            row = connection.execute(select(batches).where(batches.c.id == batch_id, batches.c.team == team)).first()
        if row is None:
            raise _no_such_batch(batch_id)
        return row._asdict()

    def page(self, team: str, *, after: str | None, limit: int, key: str | None = None) -> list[Mapping[str, Any]]:
        """One page, newest first, of the batches older than ``after`` (and, if given, under ``key``)."""
        query = select(batches).where(batches.c.team == team)
        if key is not None:
            query = query.where(batches.c.key == key)
        if after is not None:
            last = self.get(team, after)
            query = query.where(
                or_(
                    batches.c.created_at < last["created_at"],
                    and_(batches.c.created_at == last["created_at"], batches.c.id < after),
                )
            )
        query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [row._asdict() for row in connection.execute(query)]

    def rate(self, batch_id: str) -> Rate | None:
        """The batch's pace over the last minute; None while nothing was committed in it."""
        now = self._database.now()
        query = select(
            func.sum(parts.c.rows).label("rows"),
            func.sum(parts.c.prompt_tokens + parts.c.completion_tokens).label("tokens"),
            (now - func.max(batches.c.in_progress_at)).label("age"),
        ).join(batches, batches.c.id == parts.c.batch_id)
        query = query.where(parts.c.batch_id == batch_id, parts.c.committed_at > now - RATE_SECONDS)
        with self._database.reading() as connection:
            rows, tokens, age = connection.execute(query).one()
        if not rows:
            return None
        seconds = max(1.0, min(RATE_SECONDS, age))
        return Rate(rows / seconds, tokens / seconds)

    def cancel(self, team: str, batch_id: str, *, holder: str | None = None) -> Mapping[str, Any]:
        """Asks for the end of a batch; one that is ending or has ended stays as it is.

        Raises :class:`ConflictError` if ``holder`` is given and holds the batch no longer.
        """
        with self._database.writing() as connection:
            batch = connection.execute(
                select(batches).where(batches.c.id == batch_id, batches.c.team == team).with_for_update()
            ).first()
            if batch is None:
                raise _no_such_batch(batch_id)
            if holder is not None and batch.holder != holder:
                raise ConflictError(
                    f"Batch {batch_id} is not held by {holder} any more but by {batch.holder}. It goes on.",
                    code="holder_changed",
                    param="holder",
                )
            self._cancel(connection, batch_id)
            return self._row(connection, batch_id)

    def for_duty(self, duty: Duty) -> Mapping[str, Any]:
        """The batch that a duty is for."""
        with self._database.reading() as connection:
            return self._row(connection, duty.batch_id)

    def generation_before(self, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The planned batch that this one goes on from: the generation before it, if that was of the same content."""
        earlier = select(batches).where(
            batches.c.team == batch["team"],
            batches.c.key == batch["key"],
            batches.c.generation < batch["generation"],
        )
        with self._database.reading() as connection:
            row = connection.execute(earlier.order_by(batches.c.generation.desc()).limit(1)).first()
        if row is None or row.content_sha256 != batch["content_sha256"] or row.plan_key is None:
            return None
        return row._asdict()

    def superseded(self, batch: Mapping[str, Any]) -> bool:
        """Whether a newer batch under the same key or in the same series has taken over this one's target."""
        same = batches.c.key == batch["key"]
        if batch["series"] is not None:
            same = or_(same, batches.c.series == batch["series"])
        newer = select(batches.c.id).where(
            batches.c.team == batch["team"],
            same,
            batches.c.id != batch["id"],
            or_(
                batches.c.created_at > batch["created_at"],
                and_(batches.c.key == batch["key"], batches.c.generation > batch["generation"]),
            ),
        )
        with self._database.reading() as connection:
            return connection.execute(newer.limit(1)).first() is not None

    def activate(self, duty: Duty, plan: Plan) -> None:
        """Makes a staged plan real: the batch's chunks can be claimed from here on."""
        with self._database.writing() as connection:
            batch = self._row(connection, duty.batch_id)
            end_duty(connection, duty)
            started = connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.status == BatchStatus.VALIDATING)
                .values(
                    status=BatchStatus.IN_PROGRESS,
                    in_progress_at=self._database.now(),
                    model=plan.model or batch["model"],
                    plan_key=plan.storage_key,
                    rows_total=plan.rows_total,
                    rows_done=plan.rows_done,
                    rows_failed=plan.rows_failed,
                    chunks_total=len(plan.chunks),
                    trouble=None,
                )
            )
            if started.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} was {batch['status']} before its plan was ready.")
            same = {name: batch[name] for name in ("team", "endpoint", "priority")}
            same["model"] = plan.model or batch["model"]
            if plan.chunks:
                connection.execute(
                    insert(chunks),
                    [
                        {"batch_id": duty.batch_id, "state": ChunkState.PENDING, **same, **vars(chunk)}
                        for chunk in plan.chunks
                    ],
                )
            connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.expires_at <= self._database.now())
                .values(**self._expiring())
            )
            settle(connection, self._database, duty.batch_id)

    def fail(self, duty: Duty, errors: list[dict[str, Any]]) -> None:
        """Ends a batch whose input cannot be run."""
        with self._database.writing() as connection:
            end_duty(connection, duty)
            ended = connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.status == BatchStatus.VALIDATING)
                .values(status=BatchStatus.FAILED, failed_at=self._database.now(), errors=errors, trouble=None)
            )
            if ended.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} had ended before its plan failed.")
            add_duty(connection, duty.batch_id, DutyKind.NOTIFY)

    def finish(
        self,
        duty: Duty,
        status: BatchStatus,
        *,
        manifest: dict[str, Any] | None = None,
        output: StoredFile | None = None,
        error: StoredFile | None = None,
        trouble: str | None = None,
    ) -> None:
        """Ends a batch whose results stand (or, for a cancelled one, never will), with its files in the same stroke.

        A cancel that came while they were assembled makes the duty start again: see :class:`DutyLostError`.
        """
        before = BatchStatus.CANCELLING if status == BatchStatus.CANCELLED else BatchStatus.FINALIZING
        with self._database.writing() as connection:
            team = self._row(connection, duty.batch_id)["team"]
            end_duty(connection, duty)
            for file in (output, error):
                if file is not None:
                    insert_file(connection, self._database, team, file)
            ended = connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.status == before)
                .values(
                    {
                        "status": status,
                        f"{status}_at": self._database.now(),
                        "manifest": manifest,
                        "output_file_id": output.id if output else None,
                        "error_file_id": error.id if error else None,
                        "trouble": trouble,
                    }
                )
            )
            if ended.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} was not {before} any more when its results stood.")
            add_duty(connection, duty.batch_id, DutyKind.NOTIFY)

    def retry(self, team: str, batch_id: str) -> Mapping[str, Any]:
        """A new generation of a batch that ended with rows undone or failed; it asks for those alone.

        Said twice it opens one: the second call finds the new generation. Raises :class:`ConflictError` for a batch
        that is not the last of its generations or has nothing to be done again.
        """
        with self._database.writing() as connection:
            batch = connection.execute(
                select(batches).where(batches.c.id == batch_id, batches.c.team == team).with_for_update()
            ).first()
            if batch is None:
                raise _no_such_batch(batch_id)
            last = self._last_generation(connection, team, batch.key)
            if last.id != batch_id and last.status not in ENDED:
                return self._row(connection, last.id)
            _check_retry(batch, last)
            new_id = f"batch_{uuid.uuid4().hex}"
            values = {name: getattr(batch, name) for name in _REPEATED}
            window = window_seconds(batch.completion_window) if batch.completion_window else None
            ends = None if window is None else self._database.now() + window
            self._store(connection, new_id, batch.generation + 1, values | {"team": team, "expires_at": ends})
            return self._row(connection, new_id)

    def created_within(self, team: str, seconds: float) -> int:
        """How many batches the team submitted in the last ``seconds``."""
        query = select(func.count()).where(
            batches.c.team == team, batches.c.created_at > self._database.now() - seconds
        )
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def expire_due(self) -> None:
        """Stops the batches whose time is up. One that is still planned stops right after that."""
        due = (batches.c.status == BatchStatus.IN_PROGRESS, batches.c.expires_at <= self._database.now())
        with self._database.reading() as connection:
            found = connection.scalars(select(batches.c.id).where(*due)).all()
        for batch_id in found:
            with self._database.writing() as connection:
                connection.execute(update(batches).where(batches.c.id == batch_id, *due).values(**self._expiring()))
                settle(connection, self._database, batch_id)

    def settle_ending(self) -> None:
        """Lets cancelling and expiring batches end whose workers are gone without a word."""
        ending = or_(
            batches.c.status == BatchStatus.CANCELLING,
            and_(batches.c.status == BatchStatus.FINALIZING, batches.c.expiring),
        )
        with self._database.reading() as connection:
            waiting = connection.scalars(select(batches.c.id).where(ending)).all()
        for batch_id in waiting:
            with self._database.writing() as connection:
                settle(connection, self._database, batch_id)

    def _expiring(self) -> dict[str, Any]:
        return {"status": BatchStatus.FINALIZING, "finalizing_at": self._database.now(), "expiring": True}

    def _last_generation(self, connection: Connection, team: str, key: str) -> Any:
        return connection.execute(
            select(batches)
            .where(batches.c.team == team, batches.c.key == key)
            .order_by(batches.c.generation.desc())
            .limit(1)
            .with_for_update()
        ).first()

    def _attach(self, connection: Connection, last: Any, new: NewBatch) -> Mapping[str, Any]:
        if last.content_sha256 != new.content_sha256:
            raise ConflictError(
                f"Key {new.key!r} belongs to batch {last.id} ({last.status}), which was submitted with another spec or "
                "from a source that has changed since. Nothing was submitted. Use a new key (in Airflow: clear the "
                "task), or cancel that batch first.",
                code="key_conflict",
                param="key",
            )
        if new.holder is not None:
            connection.execute(update(batches).where(batches.c.id == last.id).values(holder=new.holder))
        return self._row(connection, last.id)

    def _insert(
        self, connection: Connection, team: str, batch_id: str, key: str, generation: int, new: NewBatch
    ) -> None:
        now = self._database.now()
        ends: list[ColumnElement[float]] = [] if new.deadline is None else [literal(new.deadline, Double)]
        ends += [] if new.window_seconds is None else [now + new.window_seconds]
        values = {name: value for name, value in vars(new).items() if name != "window_seconds"}
        values |= {
            "team": team,
            "key": key,
            "expires_at": case((ends[0] < ends[-1], ends[0]), else_=ends[-1]) if ends else None,
        }
        self._store(connection, batch_id, generation, values)

    def _store(self, connection: Connection, batch_id: str, generation: int, values: dict[str, Any]) -> None:
        if values["input_file_id"] is not None:
            held_file(connection, self._database, values["team"], values["input_file_id"], param="input_file_id")
        connection.execute(
            insert(batches).values(
                **values,
                id=batch_id,
                generation=generation,
                status=BatchStatus.VALIDATING,
                created_at=self._database.now(),
            )
        )
        add_duty(connection, batch_id, DutyKind.PLAN)

    def _cancel_series(self, connection: Connection, team: str, series: str | None, newest: str) -> None:
        if series is None:
            return
        older = connection.scalars(
            select(batches.c.id).where(
                batches.c.team == team,
                batches.c.series == series,
                batches.c.id != newest,
                batches.c.status.in_(_CANCELLABLE),
            )
        ).all()
        for batch_id in older:
            self._cancel(connection, batch_id)

    def _cancel(self, connection: Connection, batch_id: str) -> None:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.status.in_(_CANCELLABLE))
            .values(status=BatchStatus.CANCELLING, cancelling_at=self._database.now())
        )
        settle(connection, self._database, batch_id)

    def _row(self, connection: Connection, batch_id: str) -> Mapping[str, Any]:
        return connection.execute(select(batches).where(batches.c.id == batch_id)).one()._asdict()


def settle(connection: Connection, database: Database, batch_id: str) -> None:
    """Moves a batch on once its last chunk is done, or once nobody works on an ending one any more."""
    batch = connection.execute(select(batches).where(batches.c.id == batch_id).with_for_update()).one()
    if batch.status == BatchStatus.IN_PROGRESS and batch.chunks_done == batch.chunks_total:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch_id)
            .values(status=BatchStatus.FINALIZING, finalizing_at=database.now())
        )
        add_duty(connection, batch_id, DutyKind.ASSEMBLE)
    elif batch.status == BatchStatus.CANCELLING and batch.plan_key is None:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch.id)
            .values(status=BatchStatus.CANCELLED, cancelled_at=database.now())
        )
        drop_duty(connection, batch.id, DutyKind.PLAN)
        add_duty(connection, batch_id, DutyKind.NOTIFY)
    elif batch.status == BatchStatus.CANCELLING or (batch.status == BatchStatus.FINALIZING and batch.expiring):
        _settle_ending(connection, database, batch)


def _settle_ending(connection: Connection, database: Database, batch: Any) -> None:
    """Hands an ending batch to the assembler once no worker holds a chunk of it."""
    at_work = select(func.count()).where(
        chunks.c.batch_id == batch.id, chunks.c.state == ChunkState.LEASED, chunks.c.lease_until > database.now()
    )
    if has_duty(connection, batch.id, DutyKind.ASSEMBLE) or connection.scalar(at_work):
        return
    connection.execute(
        update(chunks)
        .where(chunks.c.batch_id == batch.id, chunks.c.state != ChunkState.DONE)
        .values(state=ChunkState.DROPPED)
    )
    connection.execute(
        update(batches)
        .where(batches.c.id == batch.id, batches.c.finalizing_at.is_(None))
        .values(finalizing_at=database.now())
    )
    add_duty(connection, batch.id, DutyKind.ASSEMBLE)


def _check_retry(batch: Any, last: Any) -> None:
    if last.id != batch.id:
        raise ConflictError(
            f"Batch {batch.id} is generation {batch.generation} of its key; the last one is {last.id} ({last.status}). "
            "Nothing was submitted. Retry that one.",
            code="superseded",
        )
    if batch.status not in _RETRIED:
        raise ConflictError(
            f"Batch {batch.id} is {batch.status}: only one that completed, expired or was cancelled can be retried. "
            "Nothing was submitted.",
            code="not_retryable",
        )
    if batch.rows_done == batch.rows_total > 0 and batch.rows_failed == 0:
        raise ConflictError(
            f"All {batch.rows_total} rows of batch {batch.id} succeeded: there is nothing to do again. "
            "Nothing was submitted.",
            code="nothing_to_retry",
        )


def _no_such_batch(batch_id: str) -> NotFoundError:
    return NotFoundError(f"No such batch: {batch_id}.", code="batch_not_found", param="batch_id")
