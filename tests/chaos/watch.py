"""Looks at the store after every single commit, whoever made it, and notes what must never be."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import create_engine

from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.worker_wire import Claim, ResultLine, RowLine, unpack

ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})
ALLOWED: Final = {
    None: {"validating"},
    "validating": {"in_progress", "finalizing", "failed", "cancelled"},
    "in_progress": {"finalizing", "cancelling"},
    "finalizing": {"completed", "expired", "cancelling"},
    "cancelling": {"cancelled"},
}
"""Which status may follow which. What is not here ends a batch's life."""

HELD_WRONGLY: Final = (
    "SELECT c.id, c.state, c.batch_id, b.paused FROM chunks c JOIN batches b ON b.id = c.batch_id "
    "WHERE b.status = 'in_progress' AND c.state = CASE WHEN b.paused IS NULL THEN 'held' ELSE 'pending' END"
)

LEFT_BEHIND: Final = (
    "SELECT c.id, c.batch_id, b.canary FROM chunks c JOIN batches b ON b.id = c.batch_id "
    "WHERE b.status = 'in_progress' AND c.state = 'later' AND (b.canary IS NULL OR b.canary <> 'open')"
)


@dataclass
class SeenBatch:
    """What was seen of a batch."""

    id: str
    key: str
    generation: int
    content_sha256: str
    statuses: list[str]
    target: str | None
    source: Any
    """What it is over, as the schedule knew it when the batch appeared."""
    committed: dict[int, int] = field(default_factory=dict)
    """The attempt that committed each row."""
    succeeded: set[int] = field(default_factory=set)
    deleted: bool = False
    lines: list[ResultLine] = field(default_factory=list)
    """All that was committed of it."""


@dataclass
class Lease:
    """A lease as its worker knows it: it holds at least until then."""

    worker: str
    until: float


@dataclass
class Watch:
    """The ledger of one schedule. ``wrong`` gathers what broke a promise."""

    url: str
    storage: Storage
    clock: Callable[[], float]
    source_of: Callable[[str | None], Any]
    """What a new batch with this target is over; of a request file, which has none, its file says it."""
    batches: dict[str, SeenBatch] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    may_go: set[str] = field(default_factory=set)
    """Batches whose deletion was asked for."""
    leases: dict[int, dict[int, Lease]] = field(default_factory=lambda: defaultdict(dict))
    """By chunk and attempt, as far as they are not known to have ended."""
    lost_planners: Counter[str] = field(default_factory=Counter)
    """How often a process that the service knew to be dead had held the plan duty of a batch."""
    _over: set[tuple[int, int]] = field(default_factory=set)
    _parts: int = 0
    _known_parts: set[tuple[int, int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()

    def rows(self, query: str) -> list[Any]:
        return list(self._connection.exec_driver_sql(query))

    def committed(self) -> None:
        """A transaction was committed just now."""
        found = self.rows("SELECT id, key, series, generation, status, content_sha256, dataset FROM batches")
        living: dict[str, str] = {}
        for row in found:
            self._saw(row)
            if row.status not in ENDED | {"cancelling"}:
                for name in {row.key, row.series} - {None}:
                    if name in living:
                        self.wrong.append(f"{name} has two living batches: {living[name]} and {row.id}")
                    living[name] = row.id
        for batch in self.batches.values():
            if not batch.deleted and batch.id not in {row.id for row in found}:
                self._gone(batch)
        for row in self.rows(HELD_WRONGLY):
            self.wrong.append(f"chunk {row.id} is {row.state}, though batch {row.batch_id} is paused: {row.paused}")
        for row in self.rows(LEFT_BEHIND):
            self.wrong.append(f"chunk {row.id} waits for the canary of batch {row.batch_id}, which is {row.canary}")
        (count,) = self.rows("SELECT count(*) FROM parts")[0]
        if count != self._parts:
            self._parts = count
            self._look_at_parts()

    def process_lost(self, holder: str) -> None:
        """A duty process has died, and its service is going to say so."""
        query = f"SELECT batch_id FROM duties WHERE kind = 'plan' AND NOT done AND holder = '{holder}'"  # noqa: S608
        self.lost_planners.update(row.batch_id for row in self.rows(f"{query} AND lease_until IS NOT NULL"))

    def granted(self, claim: Claim, worker: str, at: float) -> None:
        """A call that was made ``at`` gave a chunk: no lease of an earlier attempt may hold any more."""
        for attempt, lease in self.leases[claim.chunk_id].items():
            if attempt < claim.attempt and lease.until > self.clock():
                self.wrong.append(
                    f"chunk {claim.chunk_id} was given to attempt {claim.attempt} at {self.clock():.0f}, though "
                    f"attempt {attempt} ({lease.worker}) has its lease until {lease.until:.0f}"
                )
        self.held(claim, worker, at)

    def asked(self, claim: Claim, lines: Iterable[RowLine]) -> None:
        """A worker is going to ask these rows of a chunk: nobody may have answered them before."""
        batch = self.batches[claim.batch_id]
        rows = {line.row for line in lines}
        again = [row for row in rows if batch.committed.get(row, claim.attempt) < claim.attempt]
        if again:
            self.wrong.append(
                f"rows {again} of {batch.id} are to be asked again in attempt {claim.attempt} at chunk "
                f"{claim.chunk_id}, though a part with them was committed before"
            )
        for earlier in self._generations_before(batch):
            if paid := rows & earlier.succeeded:
                self.wrong.append(f"rows {paid} of {batch.id} are asked again: {earlier.id} has their answers")

    def held(self, claim: Claim, worker: str, at: float) -> None:
        """The service said, for a call made ``at``, that an attempt has its chunk from then on for a lease's length."""
        if (claim.chunk_id, claim.attempt) not in self._over:
            self.leases[claim.chunk_id][claim.attempt] = Lease(worker, at + claim.lease_seconds)

    def lease_ended(self, chunk_id: int, attempt: int) -> None:
        """It is being given back: whatever the answer will be, nobody may count on it from here on."""
        self._over.add((chunk_id, attempt))
        self.leases[chunk_id].pop(attempt, None)

    def leases_ended_of(self, worker: str) -> None:
        """A worker of that name registered again."""
        for chunk_id, attempts in self.leases.items():
            for attempt in [number for number, lease in attempts.items() if lease.worker == worker]:
                self.lease_ended(chunk_id, attempt)

    def _generations_before(self, batch: SeenBatch) -> list[SeenBatch]:
        """Those of the same content; none if one of them was deleted, for then its answers are rightly gone."""
        found = [other for other in self.batches.values() if other.key == batch.key]
        if any(other.deleted for other in found):
            return []
        same = [other for other in found if other.content_sha256 == batch.content_sha256]
        return [other for other in same if other.generation < batch.generation]

    def _saw(self, row: Any) -> None:
        batch = self.batches.get(row.id)
        if batch is None:
            target = _target(row.dataset)
            source = self.source_of(target)
            batch = SeenBatch(row.id, row.key, row.generation, row.content_sha256, [], target, source)
            self.batches[row.id] = batch
        before = batch.statuses[-1] if batch.statuses else None
        if row.status == before:
            return
        if row.status not in ALLOWED.get(before, set()):
            self.wrong.append(f"batch {row.id} went from {before} to {row.status}")
        batch.statuses.append(row.status)

    def _gone(self, batch: SeenBatch) -> None:
        batch.deleted = True
        if batch.id not in self.may_go or batch.statuses[-1] not in ENDED:
            self.wrong.append(f"batch {batch.id} is gone; it was {batch.statuses[-1]}")

    def _look_at_parts(self) -> None:
        found = self.rows(
            "SELECT p.chunk_id, p.attempt, p.number, p.batch_id, p.storage_key, p.rows AS counted, "
            "c.attempt AS current FROM parts p JOIN chunks c ON c.id = p.chunk_id"
        )
        for part in found:
            name = (part.chunk_id, part.attempt, part.number)
            if name not in self._known_parts:
                self._known_parts.add(name)
                self._check_part(part)

    def _check_part(self, part: Any) -> None:
        batch = self.batches[part.batch_id]
        said = f"part {part.number} of attempt {part.attempt} at chunk {part.chunk_id} of {batch.id}"
        if part.attempt != part.current:
            self.wrong.append(f"{said} counts, though the chunk is with attempt {part.current}")
        if batch.statuses[-1] in ENDED:
            self.wrong.append(f"{said} was committed after the batch had ended as {batch.statuses[-1]}")
        try:
            with self.storage.open(part.storage_key) as stream:
                lines = list(unpack(io.BytesIO(stream.read()), ResultLine))
        except FileNotFoundError:
            self.wrong.append(f"{said} was committed, but nothing is in storage under {part.storage_key}")
            return
        if len(lines) != part.counted:
            self.wrong.append(f"{said} has {len(lines)} rows and counts {part.counted}")
        for line in lines:
            if line.row in batch.committed:
                self.wrong.append(f"{said} has row {line.row}, which attempt {batch.committed[line.row]} committed")
            batch.committed[line.row] = part.attempt
            if line.status == "success":
                batch.succeeded.add(line.row)
        batch.lines += lines


def _target(dataset: Any) -> str | None:
    spec = json.loads(dataset) if isinstance(dataset, str) else dataset
    return spec["target"] if spec else None
