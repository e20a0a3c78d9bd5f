"""Chunks: who may write, when, and that nobody else's writing counts."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.store.batches import Batches, NewBatch
from airflow_batch_llm.store.chunks import ChunkLease, Chunks, StoredPart
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.life import BatchLife, Plan, PlannedChunk
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tables import attempts, metadata
from airflow_batch_llm.store.workers import Workers
from airflow_batch_llm.worker_wire import PartRecord, Registration, ServedModel
from tests.postgres import BOTH_STORES

pytestmark = BOTH_STORES
TEAM = "default"
POOL = Pool(TEAM, all_teams=True)
LEASE = 10.0
CHAT = "/v1/chat/completions"


@dataclass
class Store:
    """A store whose clock stands until a test moves it."""

    url: str
    now: float = 1000.0
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(self.url, clock=lambda: self.now)
        self.batches = Batches(self.database)
        self.life = BatchLife(self.database)
        self.chunks = Chunks(self.database)
        self.duties = Duties(self.database)
        self.workers = Workers(self.database)

    def worker(self, name: str = "w", identity: str | None = None) -> str:
        served = ServedModel(model="m", endpoint=CHAT, engine_identity=identity)
        return self.workers.register(POOL, Registration(name=name, version="1", models=[served]))

    def submit(self, **values: Any) -> str:
        new = NewBatch(**{"content_sha256": "c", "endpoint": CHAT, "model": "m", "dataset": {}, **values})
        return str(self.batches.submit(TEAM, new)["id"])

    def planned(self, *, chunks: int = 1, rows: int = 4, **values: Any) -> str:
        batch_id = self.submit(**values)
        duty = self.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
        assert duty is not None
        assert duty.batch_id == batch_id
        planned = [
            PlannedChunk(number=number, rows=rows, tokens=1, storage_key=f"k{number}", bytes=1, sha256="s")
            for number in range(chunks)
        ]
        plan = Plan(storage_key="p", rows_total=chunks * rows, rows_done=0, rows_failed=0, chunks=planned)
        self.life.activate(duty, plan)
        return batch_id

    def claim(self, worker_id: str) -> ChunkLease | None:
        chunk = self.chunks.claim(worker_id, lease_seconds=LEASE)
        return None if chunk is None else ChunkLease(chunk["id"], chunk["attempt"])

    def status(self, batch_id: str) -> str:
        return str(self.batches.get(TEAM, batch_id)["status"])


def part(number: int = 0, rows: int = 2, sha256: str = "x") -> StoredPart:
    """A part of a content that ``sha256`` stands for."""
    record = PartRecord(
        number=number,
        bytes=1,
        sha256=hashlib.sha256(sha256.encode()).hexdigest(),
        rows=rows,
        rows_failed=0,
        prompt_tokens=3,
        cached_tokens=0,
        completion_tokens=4,
        gpu_seconds=0.5,
    )
    return StoredPart(f"part-{number}-{sha256}", record)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.database.close()


def test_a_claim_counts_the_attempt(store: Store) -> None:
    store.planned()
    worker = store.worker()
    assert store.claim(worker) == ChunkLease(1, 1)
    assert store.claim(worker) is None


def test_a_chunk_whose_lease_ran_out_is_claimed_before_pending_ones(store: Store) -> None:
    store.planned(chunks=2)
    worker = store.worker()
    first = store.claim(worker)
    store.now += LEASE + 1
    assert first is not None
    assert store.claim(worker) == ChunkLease(first.chunk_id, 2)


def test_higher_priority_goes_first_and_older_chunks_before_newer_ones(store: Store) -> None:
    low = store.planned(priority=0)
    high = store.planned(priority=5)
    worker = store.worker()
    claimed = [store.chunks.claim(worker, lease_seconds=LEASE) for _ in range(2)]
    assert [chunk["batch_id"] for chunk in claimed if chunk] == [high, low]


@pytest.mark.parametrize("verb", ["extend", "commit", "release"])
def test_a_worker_presumed_dead_cannot_overwrite_its_replacement(store: Store, verb: str) -> None:
    batch_id = store.planned()
    worker = store.worker()
    stale = store.claim(worker)
    store.now += LEASE + 1
    current = store.claim(worker)
    assert stale is not None
    assert current is not None
    calls = {
        "extend": lambda: store.chunks.extend(stale, [part()], lease_seconds=LEASE),
        "commit": lambda: store.chunks.commit(stale, [part(rows=4)]),
        "release": lambda: store.chunks.release(stale, [part()], outcome="drained", detail=None, rows_lost=0),
    }
    with pytest.raises(LeaseLostError, match="Nothing was written"):
        calls[verb]()
    assert list(store.chunks.parts_of_batch(batch_id)) == []
    assert store.batches.get(TEAM, batch_id)["rows_done"] == 0
    store.chunks.commit(current, [part(rows=4)])
    assert store.status(batch_id) == "finalizing"


def test_a_frozen_worker_that_nobody_replaced_may_go_on(store: Store) -> None:
    store.planned()
    lease = store.claim(store.worker())
    store.now += 10 * LEASE
    assert lease is not None
    assert store.chunks.extend(lease, [part()], lease_seconds=LEASE) is False
    assert store.claim(store.worker("other")) is None


def test_a_part_that_is_sent_twice_counts_once(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    for _ in range(2):
        store.chunks.extend(lease, [part()], lease_seconds=LEASE)
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["rows_done"], batch["prompt_tokens"], batch["gpu_seconds"]) == (2, 3, 0.5)


def test_a_part_cannot_change_once_it_is_committed(store: Store) -> None:
    store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    store.chunks.extend(lease, [part()], lease_seconds=LEASE)
    with pytest.raises(ConflictError, match="other content"):
        store.chunks.extend(lease, [part(sha256="y")], lease_seconds=LEASE)


def test_a_chunk_ends_only_when_every_row_has_a_result(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    with pytest.raises(ConflictError, match="4 rows, but 2"):
        store.chunks.commit(lease, [part()])
    assert store.batches.get(TEAM, batch_id)["rows_done"] == 0
    store.chunks.commit(lease, [part(), part(1)])
    store.chunks.commit(lease, [part(), part(1)])  # the answer to the first was lost
    assert store.batches.get(TEAM, batch_id)["chunks_done"] == 1


def test_what_a_released_attempt_committed_stays(store: Store) -> None:
    batch_id = store.planned()
    worker = store.worker()
    first = store.claim(worker)
    assert first is not None
    store.chunks.release(first, [part()], outcome="drained", detail=None, rows_lost=2)
    second = store.claim(worker)
    assert second == ChunkLease(first.chunk_id, 2)
    assert len(store.chunks.parts_of_chunk(first.chunk_id)) == 1
    store.chunks.commit(second, [part()])
    assert store.status(batch_id) == "finalizing"
    with store.database.reading() as connection:
        told = connection.execute(select(attempts.c.outcome, attempts.c.rows, attempts.c.rows_lost)).all()
    assert [tuple(row) for row in told] == [("drained", 2, 2), ("committed", 2, 0)]


def test_a_worker_gets_only_chunks_of_the_models_it_serves(store: Store) -> None:
    store.planned(model="other")
    assert store.claim(store.worker()) is None


def test_a_restarted_worker_takes_its_chunks_back_at_once(store: Store) -> None:
    store.planned()
    first = store.claim(store.worker())
    assert store.claim(store.worker("somebody else")) is None
    store.now += 0.1
    again = store.worker()
    store.now += 0.1
    assert first is not None
    assert store.claim(again) == ChunkLease(first.chunk_id, 2)


def test_two_engines_that_differ_are_not_accepted_under_one_name(store: Store) -> None:
    store.worker("a", identity="1")
    with pytest.raises(ConflictError, match="unequal answers"):
        store.worker("b", identity="2")
    store.worker("c", identity="1")


def test_a_cancelled_batch_waits_for_its_workers_and_drops_the_rest(store: Store) -> None:
    batch_id = store.planned(chunks=3)
    worker = store.worker()
    lease = store.claim(worker)
    assert lease is not None
    store.batches.cancel(TEAM, batch_id)
    assert store.status(batch_id) == "cancelling"
    assert store.claim(worker) is None
    assert store.chunks.extend(lease, [part()], lease_seconds=LEASE) is True
    assert store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE) is None
    store.chunks.release(lease, [], outcome="stopped", detail=None, rows_lost=0)
    assert store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE) is not None


def test_a_cancelled_batch_does_not_wait_for_a_dead_worker(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    store.batches.cancel(TEAM, batch_id)
    store.now += LEASE + 1
    store.life.settle_ending()
    assert store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE) is not None
    with pytest.raises(LeaseLostError):
        store.chunks.commit(lease, [part(rows=4)])


def test_no_chunk_is_claimed_twice_by_claimers_at_once(store: Store) -> None:
    store.planned(chunks=200)
    workers = [store.worker(f"w{number}") for number in range(4)]
    claimed: list[int] = []

    def claim_all(worker_id: str) -> None:
        while (lease := store.claim(worker_id)) is not None:
            assert lease.attempt == 1
            claimed.append(lease.chunk_id)

    threads = [threading.Thread(target=claim_all, args=[worker_id]) for worker_id in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(1, 201))


def test_the_migrations_make_the_tables_that_the_code_uses(store: Store) -> None:
    with store.database.reading() as connection:
        # SQLite does not tell which way an index goes; that it is the same index, Postgres says.
        skipped = {"ix_chunks_claim"} if store.url.startswith("sqlite") else set()
        options = {"include_name": lambda name, kind, parents: name not in skipped}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
