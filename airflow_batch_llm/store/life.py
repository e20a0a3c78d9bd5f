"""The life of a batch after its submit: what duties and workers make of it, until it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, insert, or_, select, true, tuple_, update

from airflow_batch_llm.models import BatchStatus, CanaryState, ChunkState, DutyKind
from airflow_batch_llm.store.canaries import pause_after_canary
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.duties import Duty, DutyLostError, add_duty, check_held, drop_duty, end_duty, has_duty
from airflow_batch_llm.store.files import StoredFile, insert_file
from airflow_batch_llm.store.locks import lock_batch
from airflow_batch_llm.store.tables import batches, chunks
from airflow_batch_llm.store.turns import Line, due_of, first_turn, lock_turns, near_deadline, raise_batch
from airflow_batch_llm.store.waiting import waiting_state


@dataclass(frozen=True, kw_only=True)
class PlannedChunk:
    number: int
    rows: int
    tokens: int
    storage_key: str
    bytes: int
    sha256: str
    later: bool = False
    """Whether it waits until the batch's canary has passed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A staged plan: real once :meth:`BatchLife.activate` has taken it."""

    storage_key: str
    rows_total: int
    rows_done: int
    """Rows that have their result already: those that cannot be asked, and those that an earlier generation did."""
    rows_failed: int
    """Rows that cannot be asked (malformed, not text …)."""
    chunks: list[PlannedChunk]
    model: str | None = None
    """Of a request file, whose lines say it."""
    rows_duplicate: int = 0
    """Rows that are to get the answer of an equal row of the same batch."""
    rows_reused: int = 0
    """Rows of ``rows_done`` that got the answer of an equal row of an earlier batch."""
    engine_identity: str | None = None
    """What the keys of the rows are made for."""
    endpoint: str | None = None
    """Where the chunks go, if not to the batch's own endpoint."""


class BatchLife:
    """What the duties ask of batches, and do to them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def for_duty(self, duty: Duty) -> Mapping[str, Any]:
        """The batch that a duty is for, as it stands while the duty is held: what ends the one ends the other.

        Raises :class:`DutyLostError` if the duty is not held any more.
        """
        with self._database.reading() as connection:
            row = connection.execute(select(batches).where(batches.c.id == duty.batch_id)).first()
            check_held(connection, duty)
            if row is None:
                raise DutyLostError(f"Batch {duty.batch_id} was deleted before its {duty.kind} duty began.")
            return row._asdict()

    def generation_before(self, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The batch that this one goes on from: the last generation before it that was planned, of the same content.

        That has all answers of those before it. One whose bytes are gone has none.
        """
        earlier = self._earlier(batch).where(
            batches.c.content_sha256 == batch["content_sha256"],
            batches.c.plan_key.is_not(None),
            batches.c.bytes_dropped_at.is_(None),
        )
        with self._database.reading() as connection:
            row = connection.execute(earlier.order_by(batches.c.generation.desc()).limit(1)).first()
        return None if row is None else row._asdict()

    def still_ending(self, batch: Mapping[str, Any]) -> str | None:
        """The generation before this one whose workers may still bring answers, if there is one."""
        ending = self._earlier(batch).where(batches.c.status.in_((BatchStatus.CANCELLING, BatchStatus.FINALIZING)))
        with self._database.reading() as connection:
            row = connection.execute(ending.limit(1)).first()
        return None if row is None else str(row.id)

    def _earlier(self, batch: Mapping[str, Any]) -> Select[Any]:
        return select(batches).where(
            batches.c.team == batch["team"],
            batches.c.key == batch["key"],
            batches.c.generation < batch["generation"],
        )

    def still_publishing(self, batch: Mapping[str, Any]) -> str | None:
        """A batch that this one has taken the target over from, and that may have published half of it, if there is
        one: its end comes first. Of those that a third has taken over, the older one's end comes first."""
        older: ColumnElement[bool] = true()
        if batch["superseded"]:  # none of two must wait for the other
            older = tuple_(batches.c.created_at, batches.c.id) < tuple_(batch["created_at"], batch["id"])
        query = select(batches.c.id).where(
            batches.c.team == batch["team"],
            batches.c.series == batch["series"],
            batches.c.id != batch["id"],
            batches.c.superseded,
            older,
            batches.c.target_hashes.is_not(None),
            batches.c.status.in_((BatchStatus.CANCELLING, BatchStatus.FINALIZING)),
        )
        with self._database.reading() as connection:
            found: str | None = connection.scalar(query.limit(1))
        return found

    def check_target(self, duty: Duty, batch: Mapping[str, Any]) -> None:
        """Looks whether a batch may still write its target, right before it does.

        Raises :class:`DutyLostError` for an attempt that was overtaken, and for a batch that is ending in another way
        by now, or whose target a newer one has taken over since the attempt began: what that one wrote is not replaced
        by what is older.
        """
        query = select(batches.c.status, batches.c.superseded).where(batches.c.id == duty.batch_id)
        with self._database.reading() as connection:
            check_held(connection, duty)
            now = connection.execute(query).one()
        taken_over = now.status == BatchStatus.CANCELLING and now.superseded and not batch["superseded"]
        if now.status != batch["status"] or taken_over:
            raise DutyLostError(f"Batch {duty.batch_id} is {now.status} by now, or another has taken over its target.")

    @tried_again
    def activate(self, duty: Duty, plan: Plan) -> None:
        """Makes a staged plan real: the batch's chunks can be claimed from here on."""
        with self._database.writing() as connection:
            lock_turns(connection, self._database, duty.batch_id)
            batch = _locked(connection, duty)
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
                    rows_duplicate=plan.rows_duplicate,
                    rows_reused=plan.rows_reused,
                    engine_identity=plan.engine_identity,
                    chunks_total=len(plan.chunks),
                    canary=CanaryState.OPEN if any(chunk.later for chunk in plan.chunks) else None,
                    trouble=None,
                )
            )
            if started.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} was {batch['status']} before its plan was ready.")
            same = {name: batch[name] for name in ("team", "endpoint", "priority")}
            same["model"] = plan.model or batch["model"]
            same["endpoint"] = plan.endpoint or batch["endpoint"]
            same["due"] = due_of(batch)
            if plan.chunks:
                line = Line(*(same[name] for name in ("team", "model", "endpoint", "priority", "due")))
                turn, state = first_turn(connection, line, batch["fair_group"]), waiting_state(batch["paused"])
                planned = [
                    {"batch_id": duty.batch_id, "turn": turn + place, **same, **_row(chunk, state)}
                    for place, chunk in enumerate(plan.chunks)
                ]
                connection.execute(insert(chunks), planned)
            connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.expires_at <= self._database.now())
                .values(**self._expiring())
            )
            settle(connection, self._database, duty.batch_id)

    @tried_again
    def fail(self, duty: Duty, errors: list[dict[str, Any]]) -> None:
        """Ends a batch whose input cannot be run."""
        with self._database.writing() as connection:
            _locked(connection, duty)
            end_duty(connection, duty)
            ended = connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.status == BatchStatus.VALIDATING)
                .values(
                    status=BatchStatus.FAILED,
                    failed_at=self._database.now(),
                    errors=errors,
                    trouble=None,
                    paused=None,
                )
            )
            if ended.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} had ended before its plan failed.")
            add_duty(connection, duty.batch_id, DutyKind.NOTIFY)

    @tried_again
    def finish(
        self,
        duty: Duty,
        status: BatchStatus,
        *,
        manifest: dict[str, Any] | None = None,
        output: StoredFile | None = None,
        error: StoredFile | None = None,
        rows_done: int | None = None,
        rows_failed: int | None = None,
        estimate: dict[str, Any] | None = None,
        trouble: str | None = None,
    ) -> None:
        """Ends a batch whose results stand (or, for a cancelled one, never will), with its files in the same stroke.

        ``rows_done`` and ``rows_failed`` count those as well that got the answer of an equal row. A cancel that came
        while the results were assembled makes the duty start again: see :class:`DutyLostError`.
        """
        before = BatchStatus.CANCELLING if status == BatchStatus.CANCELLED else BatchStatus.FINALIZING
        with self._database.writing() as connection:
            batch = _locked(connection, duty)
            end_duty(connection, duty)
            for file in (output, error):
                if file is not None:
                    insert_file(connection, self._database, batch["team"], file)
            ended = connection.execute(
                update(batches)
                .where(batches.c.id == duty.batch_id, batches.c.status == before)
                .values(
                    {
                        "status": status,
                        f"{status}_at": self._database.now(),
                        "manifest": manifest,
                        "estimate": estimate,
                        "rows_done": batch["rows_done"] if rows_done is None else rows_done,
                        "rows_failed": batch["rows_failed"] if rows_failed is None else rows_failed,
                        "output_file_id": output.id if output else None,
                        "error_file_id": error.id if error else None,
                        "trouble": trouble,
                    }
                )
            )
            if ended.rowcount == 0:
                raise DutyLostError(f"Batch {duty.batch_id} was not {before} any more when its results stood.")
            add_duty(connection, duty.batch_id, DutyKind.NOTIFY)

    def expire_due(self) -> None:
        """Stops the batches whose time is up. One that is still planned stops right after that."""
        due = (batches.c.status == BatchStatus.IN_PROGRESS, batches.c.expires_at <= self._database.now())
        with self._database.reading() as connection:
            found = connection.scalars(select(batches.c.id).where(*due)).all()
        for batch_id in found:
            with self._database.writing() as connection:
                connection.execute(update(batches).where(batches.c.id == batch_id, *due).values(**self._expiring()))
                settle(connection, self._database, batch_id)

    def raise_due(self) -> None:
        """Lets the batches go first whose deadline is near."""
        near = near_deadline(self._database.now())
        with self._database.reading() as connection:
            found = connection.scalars(select(batches.c.id).where(*near)).all()
        for batch_id in found:
            with self._database.writing() as connection:
                lock_turns(connection, self._database, batch_id)
                batch = lock_batch(connection, batch_id)
                if batch is not None and batch.status == BatchStatus.IN_PROGRESS and not batch.raised:
                    raise_batch(connection, batch)

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
        now = self._database.now()
        return {"status": BatchStatus.FINALIZING, "finalizing_at": now, "expiring": True, "paused": None}


def settle(connection: Connection, database: Database, batch_id: str) -> None:
    """Moves a batch on once its last chunk is done, or once nobody works on an ending one any more."""
    batch = lock_batch(connection, batch_id)
    if batch is None:
        return  # it ended and was deleted since somebody looked
    if batch.status == BatchStatus.IN_PROGRESS and batch.chunks_done == batch.chunks_total:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch_id)
            .values(status=BatchStatus.FINALIZING, finalizing_at=database.now(), paused=None)
        )
        add_duty(connection, batch_id, DutyKind.ASSEMBLE)
    elif batch.status == BatchStatus.IN_PROGRESS:
        pause_after_canary(connection, batch)
    elif batch.status == BatchStatus.CANCELLING and batch.plan_key is None:
        connection.execute(
            update(batches)
            .where(batches.c.id == batch.id)
            .values(status=BatchStatus.CANCELLED, cancelled_at=database.now(), trouble=None)
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


def _row(chunk: PlannedChunk, waiting: ChunkState) -> dict[str, Any]:
    """The columns of a planned chunk; ``waiting`` is how the batch's chunks wait."""
    columns = dict(vars(chunk))
    return columns | {"state": ChunkState.LATER if columns.pop("later") else waiting}


def _locked(connection: Connection, duty: Duty) -> Mapping[str, Any]:
    """The batch of a duty, before the duty itself is touched: who cancels a batch takes its duties in that order."""
    batch = lock_batch(connection, duty.batch_id)
    if batch is None:
        raise DutyLostError(f"Batch {duty.batch_id} was deleted while its {duty.kind} duty went on.")
    return batch._asdict()
