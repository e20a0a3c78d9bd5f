"""Chunks: claimed, extended with parts, committed or released; every write is fenced by (chunk, attempt)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, func, insert, select, update

from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.beginnings import must_wait, note_beginning, server_of
from airflow_batch_llm.store.claimable import ClaimableChunks
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.life import settle
from airflow_batch_llm.store.locks import lock_batch_of_chunk
from airflow_batch_llm.store.splitting import Pieces, add_pieces
from airflow_batch_llm.store.tables import attempts, batches, chunks, parts, worker_models, workers
from airflow_batch_llm.store.waiting import waiting_state_in
from airflow_batch_llm.worker_wire import PartRecord

PARTS_PAGE: Final = 2000


@dataclass(frozen=True)
class ChunkLease:
    """The right of one attempt to work on its chunk, until the store's clock says otherwise."""

    chunk_id: int
    attempt: int


class Begun(NamedTuple):
    """What a worker is told that wants to give its engine the first row of a chunk."""

    stop: bool
    """The batch is ending."""
    wait: bool
    """Another worker's rows are at the same server: not yet. Nothing was noted but that the lease is prolonged."""


@dataclass(frozen=True)
class StoredPart:
    """A part as it was put into storage, and its record from the worker."""

    storage_key: str
    record: PartRecord


def part_key(chunk: Mapping[str, Any], attempt: int, number: int, sha256: str) -> str:
    """Where a part lies. Attempt and content are in the name, so nobody can ever overwrite a part that counts."""
    return f"batches/{chunk['batch_id']}/chunks/{chunk['number']:06d}/{attempt}-{number}-{sha256[:16]}.jsonl.zst"


class Chunks:
    """The chunks of all batches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claimable = ClaimableChunks(database.now())

    def claim(self, worker_id: str, *, lease_seconds: float) -> Mapping[str, Any] | None:
        """Leases the next chunk that this worker's engine can do, and whose team it serves, or nothing.

        Chunks whose lease ran out come first, then the order is that of :mod:`airflow_batch_llm.store.turns`. The
        attempt is counted here.
        """
        now = self._database.now()
        with self._database.writing() as connection:
            chunk_id = self._claimable.lock_next(connection, worker_id)
            if chunk_id is None:
                return None
            connection.execute(
                update(chunks)
                .where(chunks.c.id == chunk_id)
                .values(
                    state=ChunkState.LEASED,
                    attempt=chunks.c.attempt + 1,
                    worker_id=worker_id,
                    lease_until=now + lease_seconds,
                )
            )
            chunk = connection.execute(select(chunks).where(chunks.c.id == chunk_id)).one()
            self._begin_attempt(connection, chunk, worker_id)
            return chunk._asdict()

    def get(self, lease: ChunkLease) -> Mapping[str, Any]:
        """The chunk itself, while the lease holds."""
        with self._database.reading() as connection:
            return self._held(connection, lease)

    def dataset_of(self, batch_id: str) -> dict[str, Any] | None:
        """The spec of the batch that a chunk is of; None for a batch of a request file."""
        with self._database.reading() as connection:
            spec: dict[str, Any] | None = connection.scalar(select(batches.c.dataset).where(batches.c.id == batch_id))
        return spec

    def identities(self, batch_id: str) -> set[str | None]:
        """The engine identities of all workers that took part in a batch."""
        query = (
            select(worker_models.c.engine_identity)
            .join(attempts, attempts.c.worker_id == worker_models.c.worker_id)
            .join(chunks, chunks.c.id == attempts.c.chunk_id)
            .where(
                chunks.c.batch_id == batch_id,
                worker_models.c.model == chunks.c.model,
                worker_models.c.endpoint == chunks.c.endpoint,
            )
        )
        with self._database.reading() as connection:
            return set(connection.scalars(query.distinct()))

    def parts_of_chunk(self, chunk_id: int) -> list[str]:
        """Storage keys of all that was committed of a chunk."""
        query = (
            select(parts.c.storage_key).where(parts.c.chunk_id == chunk_id).order_by(parts.c.attempt, parts.c.number)
        )
        with self._database.reading() as connection:
            return list(connection.scalars(query))

    def parts_of_batch(self, batch_id: str) -> Iterator[Row[Any]]:
        """All that was committed of a batch, in that order: its columns of each part, some thousand held at a time."""
        place = 0
        while True:
            query = select(parts).where(parts.c.batch_id == batch_id, parts.c.place > place)
            with self._database.reading() as connection:
                page = connection.execute(query.order_by(parts.c.place).limit(PARTS_PAGE)).all()
            yield from page
            if len(page) < PARTS_PAGE:
                return
            place = page[-1].place

    def part_keys(self, batch_id: str, *, offset: int, limit: int) -> list[str]:
        """Storage keys of some parts of a batch, in the order in which they were committed.

        A part that is committed later has a later place, so that one who reads on while the batch goes on meets each
        part once.
        """
        query = select(parts.c.storage_key).where(parts.c.batch_id == batch_id, parts.c.place > offset)
        with self._database.reading() as connection:
            return list(connection.scalars(query.order_by(parts.c.place).limit(limit)))

    @tried_again
    def begin(self, lease: ChunkLease, *, lease_seconds: float) -> Begun:
        """Notes that an attempt is about to give rows to its engine. Said twice, it counts once."""
        now = self._database.now()
        with self._database.writing() as connection:
            server = server_of(connection, lease.chunk_id, lease.attempt)
            if server is not None:  # two that begin at once must see each other
                self._database.lock_name(connection, f"server {server}")
            chunk = self._locked(connection, lease)
            wait = server is not None and must_wait(connection, chunk, server, now)
            new = not wait and note_beginning(connection, lease.chunk_id, lease.attempt, now)
            self._change(connection, lease, lease_until=now + lease_seconds, barren=chunks.c.barren + int(new))
            return Begun(stop=self._is_ending(connection, chunk), wait=wait)

    @tried_again
    def extend(self, lease: ChunkLease, stored: list[StoredPart], *, lease_seconds: float) -> bool:
        """Prolongs a lease and commits parts; gives whether the worker should stop since the batch is ending."""
        with self._database.writing() as connection:
            chunk = self._locked(connection, lease)
            self._add_parts(connection, lease, chunk, stored)
            self._change(connection, lease, lease_until=self._database.now() + lease_seconds)
            connection.execute(
                update(workers).where(workers.c.id == chunk["worker_id"]).values(last_seen_at=self._database.now())
            )
            return self._is_ending(connection, chunk)

    def committed(self, lease: ChunkLease) -> bool:
        """Whether this very attempt has ended the chunk."""
        with self._database.reading() as connection:
            return self._committed(connection, lease)

    @tried_again
    def commit(self, lease: ChunkLease, stored: list[StoredPart]) -> None:
        """Ends a chunk of which every row has a result. Said twice by the same attempt, it is done once."""
        with self._database.writing() as connection:
            lock_batch_of_chunk(connection, lease.chunk_id)  # before the look: the same call may come twice at once
            if self._committed(connection, lease):
                return
            chunk = self._locked(connection, lease)
            done = chunk["rows_done"] + self._add_parts(connection, lease, chunk, stored)
            if done != chunk["rows"]:
                raise ConflictError(
                    f"Chunk {lease.chunk_id} has {chunk['rows']} rows, but {done} have a committed result. "
                    "The chunk was not ended.",
                    code="rows_missing",
                )
            self._change(connection, lease, state=ChunkState.DONE, lease_until=None)
            self._end_attempt(connection, lease, "committed")
            connection.execute(
                update(batches).where(batches.c.id == chunk["batch_id"]).values(chunks_done=batches.c.chunks_done + 1)
            )
            settle(connection, self._database, chunk["batch_id"])

    @tried_again
    def split(self, lease: ChunkLease, pieces: Pieces) -> Mapping[str, Any]:
        """Cuts a chunk that is held into smaller ones; gives it as it is from then on."""
        with self._database.writing() as connection:
            chunk = self._locked(connection, lease)
            self._change(connection, lease, **add_pieces(connection, chunk, pieces))
            return self._held(connection, lease)

    @tried_again
    def release(
        self,
        lease: ChunkLease,
        stored: list[StoredPart],
        *,
        outcome: str,
        detail: str | None = None,
        rows_lost: int = 0,
        in_flight: Sequence[int] = (),
    ) -> None:
        """Gives a chunk back; what was committed of it stays. ``in_flight`` were with an engine that died."""
        with self._database.writing() as connection:
            chunk = self._locked(connection, lease)
            self._add_parts(connection, lease, chunk, stored)
            suspicion = _suspicion(chunk, outcome, in_flight)
            state = waiting_state_in(connection, chunk["batch_id"])
            self._change(connection, lease, state=state, lease_until=None, worker_id=None, **suspicion)
            self._end_attempt(connection, lease, outcome, detail=detail, rows_lost=rows_lost)
            settle(connection, self._database, chunk["batch_id"])

    def _is_ending(self, connection: Connection, chunk: Mapping[str, Any]) -> bool:
        status = connection.scalar(select(batches.c.status).where(batches.c.id == chunk["batch_id"]))
        return status != BatchStatus.IN_PROGRESS

    def _held(self, connection: Connection, lease: ChunkLease) -> Mapping[str, Any]:
        chunk = connection.execute(select(chunks).where(*_fence(lease))).first()
        if chunk is None:
            raise LeaseLostError(lease.chunk_id, lease.attempt)
        return chunk._asdict()

    def _locked(self, connection: Connection, lease: ChunkLease) -> Mapping[str, Any]:
        """The chunk while the lease holds, after its batch was locked: nobody else adds to either.

        A claim takes a chunk without its batch, but then the fence of what is written refuses it.
        """
        lock_batch_of_chunk(connection, lease.chunk_id)
        return self._held(connection, lease)

    def _change(self, connection: Connection, lease: ChunkLease, **values: Any) -> None:
        changed = connection.execute(update(chunks).where(*_fence(lease)).values(**values))
        if changed.rowcount == 0:
            raise LeaseLostError(lease.chunk_id, lease.attempt)

    def _committed(self, connection: Connection, lease: ChunkLease) -> bool:
        query = select(func.count()).where(
            chunks.c.id == lease.chunk_id, chunks.c.attempt == lease.attempt, chunks.c.state == ChunkState.DONE
        )
        return bool(connection.scalar(query))

    def _begin_attempt(self, connection: Connection, chunk: Any, worker_id: str) -> None:
        now = self._database.now()
        connection.execute(
            update(attempts)
            .where(attempts.c.chunk_id == chunk.id, attempts.c.ended_at.is_(None))
            .values(ended_at=now, outcome="lease_lost")
        )
        connection.execute(
            insert(attempts).values(chunk_id=chunk.id, attempt=chunk.attempt, worker_id=worker_id, claimed_at=now)
        )

    def _end_attempt(self, connection: Connection, lease: ChunkLease, outcome: str, **values: Any) -> None:
        connection.execute(
            update(attempts)
            .where(attempts.c.chunk_id == lease.chunk_id, attempts.c.attempt == lease.attempt)
            .values(ended_at=self._database.now(), outcome=outcome, **values)
        )

    def _add_parts(
        self, connection: Connection, lease: ChunkLease, chunk: Mapping[str, Any], stored: list[StoredPart]
    ) -> int:
        """Commits the parts that are not committed yet; gives how many rows that added."""
        new = [part for part in stored if not self._known(connection, lease, part.record)]
        rows = sum(part.record.rows for part in new)
        if chunk["rows_done"] + rows > chunk["rows"]:
            raise ConflictError(
                f"Chunk {lease.chunk_id} has {chunk['rows']} rows, of which {chunk['rows_done']} have a committed "
                f"result: parts with {rows} more do not fit. Nothing was written.",
                code="rows_exceeded",
            )
        for part in new:
            self._add_part(connection, lease, chunk, part)
        return rows

    def _known(self, connection: Connection, lease: ChunkLease, record: PartRecord) -> bool:
        """Whether an earlier call, whose answer was lost, brought this very part already."""
        sha256 = connection.scalar(
            select(parts.c.sha256).where(
                parts.c.chunk_id == lease.chunk_id,
                parts.c.attempt == lease.attempt,
                parts.c.number == record.number,
            )
        )
        if sha256 not in (None, record.sha256):
            raise ConflictError(
                f"Part {record.number} of attempt {lease.attempt} at chunk {lease.chunk_id} was committed with other "
                "content before. Nothing was written.",
                code="part_conflict",
            )
        return sha256 is not None

    def _add_part(self, connection: Connection, lease: ChunkLease, chunk: Mapping[str, Any], part: StoredPart) -> None:
        record = part.record
        last = select(func.coalesce(func.max(parts.c.place), 0)).where(parts.c.batch_id == chunk["batch_id"])
        connection.execute(
            insert(parts).values(
                **record.model_dump(),
                **vars(lease),
                batch_id=chunk["batch_id"],
                storage_key=part.storage_key,
                committed_at=self._database.now(),
                place=last.scalar_subquery() + 1,  # the batch is locked: nobody else takes the same
            )
        )
        counted = {name: getattr(record, name) for name in ("prompt_tokens", "completion_tokens", "gpu_seconds")}
        details = {name: getattr(record, name) for name in ("cached_tokens", "reasoning_tokens")}
        self._change(connection, lease, rows_done=chunks.c.rows_done + record.rows, barren=0)
        connection.execute(
            update(attempts)
            .where(attempts.c.chunk_id == lease.chunk_id, attempts.c.attempt == lease.attempt)
            .values(rows=attempts.c.rows + record.rows, **_raised(attempts, counted))
        )
        connection.execute(
            update(batches)
            .where(batches.c.id == chunk["batch_id"])
            .values(
                rows_done=batches.c.rows_done + record.rows,
                rows_failed=batches.c.rows_failed + record.rows_failed,
                **_raised(batches, counted | details),
            )
        )


def _suspicion(chunk: Mapping[str, Any], outcome: str, in_flight: Sequence[int]) -> dict[str, Any]:
    """What the way in which a chunk came back says of its rows. Whoever gives it back did not end without a word."""
    if outcome != "engine_died" or not in_flight:
        return {"barren": 0}
    if not chunk["alone"]:
        return {"suspects": list(in_flight)}
    if len(in_flight) > 1:  # a worker that did not keep them apart has found nobody out
        return {}
    row, deaths = str(in_flight[0]), chunk["deaths"] or {}
    return {"deaths": deaths | {row: deaths.get(row, 0) + 1}}


def _fence(lease: ChunkLease) -> tuple[Any, ...]:
    return (
        chunks.c.id == lease.chunk_id,
        chunks.c.attempt == lease.attempt,
        chunks.c.state == ChunkState.LEASED,
    )


def _raised(table: Any, amounts: dict[str, Any]) -> dict[str, Any]:
    return {name: table.c[name] + amount for name, amount in amounts.items()}
