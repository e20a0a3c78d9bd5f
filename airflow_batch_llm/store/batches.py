"""Batches: submitted under a key, planned, worked through, ended once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Row,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from airflow_batch_llm.clock import from_unix
from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.models import ENDED, BatchStatus, DutyKind
from airflow_batch_llm.store.acts import note_act
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.duties import add_duty
from airflow_batch_llm.store.files import held_file, hold_sources
from airflow_batch_llm.store.life import settle
from airflow_batch_llm.store.locks import lock_batch, lock_batch_whole
from airflow_batch_llm.store.tables import acts, attempts, batches, chunks, duties, files, index_batches, parts
from airflow_batch_llm.wire import window_seconds

RATE_SECONDS: Final = 60.0
"""Over how long the rate of a batch is taken: long enough to smooth the flushes of parts."""

ORIGIN: Final = ("deployment", "dag_id", "task_id", "run_id", "map_index")
"""Where in Airflow a batch comes from; all of them or none."""

_SUPERSEDED_BY_NEW_GENERATION: Final = frozenset(
    {BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED, BatchStatus.CANCELLING}
)
_RETRIED: Final = frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
_REPEATED: Final = (
    *("key", "series", "group", "holder", "content_sha256", "endpoint", "model", "dataset", "input_file_id"),
    *("completion_window", "output_seconds", "metadata", "priority", "fair_group", "reuse"),
    *ORIGIN,
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
    group: str | None = None
    holder: str | None = None
    priority: int = 0
    fair_group: str | None = None
    """With which batches it shares a turn, among those of the team; its series' or nobody's unless given."""
    reuse: str = "auto"
    dry_run: bool = False
    canary_rows: int | None = None
    pause_unwatched_after: int | None = None
    """In seconds: it is paused when nobody has watched it for so long."""
    deployment: str | None = None
    dag_id: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    map_index: int | None = None
    on_changed: str = "fail"
    """What is done about a batch of other content under the key: see :meth:`Batches.submit`."""


@dataclass(frozen=True)
class Rate:
    """What was committed over the last minute, per second."""

    rows: float
    tokens: float


class Batches:
    """The batches of all teams; every look that a client causes names one team."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @tried_again
    def submit(self, team: str, new: NewBatch, *, by: str | None = None) -> Mapping[str, Any]:
        """Stores a batch, or finds the one that lives (or completed) under its key, and makes ``holder`` its holder.

        Living batches of the same series under other keys are cancelled. Where the key is taken by a batch of other
        content, that gives way to a new generation if ``on_changed`` is ``resubmit``; else ConflictError is raised.
        ``by`` is who did it, for the new batch and for those that it ends.
        """
        batch_id = f"batch_{uuid.uuid4().hex}"
        key = new.key or batch_id
        with self._database.writing() as connection:
            # Two submits at once must not both find that there is nothing under their key, or in their series.
            self._database.lock_name(connection, *_names(team, key, new.series))
            last = self._last_generation(connection, team, key)
            if last is not None and last.status not in _SUPERSEDED_BY_NEW_GENERATION:
                if last.content_sha256 == new.content_sha256 or new.on_changed == "fail":
                    return self._attach(connection, last, new)
                self._cancel(connection, last.id, by)
            generation = last.generation + 1 if last is not None else 1
            self._insert(connection, team, batch_id, key, generation, new)
            note_act(connection, self._database, batch_id, "submit", by)
            self._take_over(connection, team, new, batch_id, by)
            return self._row(connection, batch_id)

    def get(self, team: str, batch_id: str) -> Mapping[str, Any]:
        with self._database.reading() as connection:
            row = connection.execute(select(batches).where(batches.c.id == batch_id, batches.c.team == team)).first()
        if row is None:
            raise no_such_batch(batch_id)
        return row._asdict()

    def page(
        self, team: str, *, after: str | None, limit: int, key: str | None = None, group: str | None = None
    ) -> list[Mapping[str, Any]]:
        """One page, newest first, of the batches older than ``after`` (and, if given, under ``key``, of ``group``)."""
        query = select(batches).where(batches.c.team == team)
        if key is not None:
            query = query.where(batches.c.key == key)
        if group is not None:
            query = query.where(batches.c.group == group)
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
        return self.rates([batch_id]).get(batch_id)

    def rates(self, batch_ids: Sequence[str]) -> dict[str, Rate]:
        """The pace over the last minute of those of at most a page of batches that have one, in one query."""
        now = select(self._database.now()).scalar_subquery()  # Postgres uses no index for the clock itself
        query = (
            select(
                parts.c.batch_id,
                func.sum(parts.c.rows),
                func.sum(parts.c.prompt_tokens + parts.c.completion_tokens),
                now - func.max(batches.c.in_progress_at),
            )
            .join(batches, batches.c.id == parts.c.batch_id)
            .where(parts.c.batch_id.in_(batch_ids), parts.c.committed_at > now - RATE_SECONDS)
            .group_by(parts.c.batch_id)
        )
        with self._database.reading() as connection:
            found = connection.execute(query).tuples().all() if batch_ids else []
        return {batch_id: _rate(float(rows), float(tokens), age) for batch_id, rows, tokens, age in found if rows}

    @tried_again
    def cancel(
        self, team: str, batch_id: str, *, holder: str | None = None, by: str | None = None
    ) -> Mapping[str, Any]:
        """Asks for the end of a batch; one that is ending or has ended stays as it is.

        Raises :class:`ConflictError` if ``holder`` is given and holds the batch no longer.
        """
        with self._database.writing() as connection:
            batch = self._locked(connection, team, batch_id)
            if holder is not None and batch.holder != holder:
                raise ConflictError(
                    f"Batch {batch_id} is not held by {holder} any more but by {batch.holder}. It goes on.",
                    code="holder_changed",
                    param="holder",
                )
            self._cancel(connection, batch_id, by)
            return self._row(connection, batch_id)

    @tried_again
    def retry(self, team: str, batch_id: str, *, by: str | None = None) -> Mapping[str, Any]:
        """A new generation of a batch that ended with rows undone or failed; it asks for those alone.

        Said twice it opens one: the second call finds the new generation. As an act it is noted with both: what
        became of the one, and how the other came to be. Raises :class:`ConflictError` for a batch
        that is not the last of its generations or has nothing to be done again.
        """
        key, series = (self.get(team, batch_id)[name] for name in ("key", "series"))
        with self._database.writing() as connection:
            self._database.lock_name(connection, *_names(team, key, series))
            batch = self._locked(connection, team, batch_id)
            last = self._last_generation(connection, team, batch.key)
            if last.id != batch_id and last.status not in ENDED:
                return self._row(connection, last.id)
            _check_retry(batch, last)
            new_id = f"batch_{uuid.uuid4().hex}"
            values = {name: getattr(batch, name) for name in _REPEATED}
            window = window_seconds(batch.completion_window) if batch.completion_window else None
            ends = None if window is None else self._database.now() + window
            self._store(connection, new_id, batch.generation + 1, values | {"team": team, "expires_at": ends})
            for retried in (batch_id, new_id):
                note_act(connection, self._database, retried, "retry", by)
            return self._row(connection, new_id)

    @tried_again
    def delete(self, team: str, batch_id: str) -> None:
        """Forgets a batch with all that hangs on it. Raises :class:`ConflictError` for one that has not ended."""
        with self._database.writing() as connection:
            batch = lock_batch_whole(connection, batch_id)
            if batch is None or batch.team != team:
                raise no_such_batch(batch_id)
            if batch.status not in ENDED:
                raise ConflictError(
                    f"Batch {batch_id} is {batch.status}: only one that has ended can be deleted. Nothing was deleted. "
                    "Cancel it first.",
                    code="batch_in_use",
                    param="batch_id",
                )
            forget_batch(connection, batch_id)
            gone = {"deleted_at": self._database.now()}
            results = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id is not None]
            connection.execute(update(files).where(files.c.id.in_(results), files.c.deleted_at.is_(None)).values(gone))

    def opens(self, team: str, key: str) -> bool:
        """Whether a submit under ``key`` would store a batch, for none that lives or completed is there to be found."""
        last = self.page(team, after=None, limit=1, key=key)
        return not last or last[0]["status"] in _SUPERSEDED_BY_NEW_GENERATION

    def gives_way(self, team: str, key: str | None, content_sha256: str) -> bool:
        """Whether the newest batch under a key is of other content."""
        last = self.page(team, after=None, limit=1, key=key)
        return bool(last) and last[0]["content_sha256"] != content_sha256

    def created_within(self, team: str, seconds: float) -> int:
        """How many batches the team submitted in the last ``seconds``."""
        query = select(func.count()).where(
            batches.c.team == team, batches.c.created_at > self._database.now() - seconds
        )
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def room_in(self, team: str, limit: int, seconds: float) -> float:
        """Seconds until fewer than ``limit`` batches of the team are younger than ``seconds``."""
        query = select(batches.c.created_at - self._database.now() + seconds).where(batches.c.team == team)
        query = query.order_by(batches.c.created_at.desc()).offset(limit - 1).limit(1)
        with self._database.reading() as connection:
            return connection.scalar(query) or 0.0

    def _last_generation(self, connection: Connection, team: str, key: str) -> Any:
        return connection.execute(
            select(batches)
            .where(batches.c.team == team, batches.c.key == key)
            .order_by(batches.c.generation.desc())
            .limit(1)
            .with_for_update(key_share=True)
        ).first()

    def _locked(self, connection: Connection, team: str, batch_id: str) -> Row[Any]:
        batch = lock_batch(connection, batch_id)
        if batch is None or batch.team != team:
            raise no_such_batch(batch_id)
        return batch

    def _attach(self, connection: Connection, last: Any, new: NewBatch) -> Mapping[str, Any]:
        if last.content_sha256 != new.content_sha256:
            raise ConflictError(
                f"Key {new.key!r} belongs to batch {last.id} ({last.status}), which was submitted with another spec or "
                "from a source that has changed since. Nothing was submitted. Use a new key (in Airflow: clear the "
                'task), cancel that batch first, or submit with on_changed="resubmit" to replace it.',
                code="key_conflict",
                param="key",
            )
        if new.holder is not None:
            values = {"holder": new.holder, **self._watched(new)}
            connection.execute(update(batches).where(batches.c.id == last.id).values(values))
        return self._row(connection, last.id)

    def _insert(
        self, connection: Connection, team: str, batch_id: str, key: str, generation: int, new: NewBatch
    ) -> None:
        now = self._database.now()
        ends: list[ColumnElement[float]] = [] if new.deadline is None else [literal(new.deadline, Double)]
        ends += [] if new.window_seconds is None else [now + new.window_seconds]
        values = {name: value for name, value in vars(new).items() if name not in ("window_seconds", "on_changed")}
        values |= {
            "team": team,
            "key": key,
            "fair_group": new.fair_group or new.series or batch_id,
            "expires_at": case((ends[0] < ends[-1], ends[0]), else_=ends[-1]) if ends else None,
            **self._watched(new),
        }
        self._store(connection, batch_id, generation, values)

    def _watched(self, new: NewBatch) -> dict[str, Any]:
        """Who submits a batch watches it."""
        after = new.pause_unwatched_after
        return {
            "pause_unwatched_after": after,
            "unwatched_at": None if after is None else self._database.now() + after,
        }

    def _store(self, connection: Connection, batch_id: str, generation: int, values: dict[str, Any]) -> None:
        if values["input_file_id"] is not None:
            held_file(connection, self._database, values["team"], values["input_file_id"], param="input_file_id")
        hold_sources(connection, self._database, values["team"], values["dataset"])
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

    def _take_over(self, connection: Connection, team: str, new: NewBatch, newest: str, by: str | None) -> None:
        """Ends what lives of the series, whose target is the newest's from now on.

        A generation before it, under the same key, has ended when the newest is planned: it may still write.
        """
        if new.series is None:
            return
        older = connection.execute(
            select(batches.c.id, batches.c.key, batches.c.status)
            .where(batches.c.team == team, batches.c.series == new.series, batches.c.id != newest)
            .where(or_(batches.c.status.in_(_CANCELLABLE), ~batches.c.superseded))
            .order_by(batches.c.id)
            .with_for_update(key_share=True)
        ).all()
        others = [batch.id for batch in older if batch.key != new.key]
        connection.execute(update(batches).where(batches.c.id.in_(others)).values(superseded=True))
        for batch in older:
            if batch.status in _CANCELLABLE:
                self._cancel(connection, batch.id, by)

    def _cancel(self, connection: Connection, batch_id: str, by: str | None) -> None:
        changed = connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.status.in_(_CANCELLABLE))
            .values(status=BatchStatus.CANCELLING, cancelling_at=self._database.now(), paused=None)
        )
        if changed.rowcount:
            note_act(connection, self._database, batch_id, "cancel", by)
        settle(connection, self._database, batch_id)

    def _row(self, connection: Connection, batch_id: str) -> Mapping[str, Any]:
        return connection.execute(select(batches).where(batches.c.id == batch_id)).one()._asdict()


def forget_batch(connection: Connection, batch_id: str) -> None:
    """Deletes a batch's record with all that hangs on it, but for its files, in a transaction of the caller's."""
    of_batch = select(chunks.c.id).where(chunks.c.batch_id == batch_id)
    connection.execute(delete(attempts).where(attempts.c.chunk_id.in_(of_batch)))
    for table in (parts, chunks, duties, index_batches, acts):
        connection.execute(delete(table).where(table.c.batch_id == batch_id))
    connection.execute(delete(batches).where(batches.c.id == batch_id))


def _check_retry(batch: Any, last: Any) -> None:
    if last.id != batch.id:
        raise ConflictError(
            f"Batch {batch.id} is generation {batch.generation} of its key; the last one is {last.id} ({last.status}). "
            "Nothing was submitted. Retry that one.",
            code="superseded",
        )
    if batch.superseded:
        raise ConflictError(
            f"Another batch of its series was submitted after {batch.id}, and its target is that one's now. "
            "Nothing was submitted. Retry that one.",
            code="superseded",
        )
    if batch.status not in _RETRIED:
        raise ConflictError(
            f"Batch {batch.id} is {batch.status}: only one that completed, expired or was cancelled can be retried. "
            "Nothing was submitted.",
            code="not_retryable",
        )
    if batch.bytes_dropped_at is not None:
        until = from_unix(batch.bytes_dropped_at)
        raise ConflictError(
            f"What batch {batch.id} had done is gone: it was kept until {until:%Y-%m-%d %H:%M} UTC, so there is "
            "nothing to go on from. Nothing was submitted. Submit it as a new batch.",
            code="results_expired",
        )
    if batch.rows_done == batch.rows_total > 0 and batch.rows_failed == 0:
        raise ConflictError(
            f"All {batch.rows_total} rows of batch {batch.id} succeeded: there is nothing to do again. "
            "Nothing was submitted.",
            code="nothing_to_retry",
        )


def _names(team: str, key: str, series: str | None) -> list[str]:
    """What a submit locks that has no row yet."""
    return [f"key {team} {key}", *([] if series is None else [f"series {team} {series}"])]


def _rate(rows: float, tokens: float, age: float) -> Rate:
    seconds = max(1.0, min(RATE_SECONDS, age))
    return Rate(rows / seconds, tokens / seconds)


def no_such_batch(batch_id: str) -> NotFoundError:
    return NotFoundError(f"No such batch: {batch_id}.", code="batch_not_found", param="batch_id")
