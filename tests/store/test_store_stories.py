"""What the store tells of one batch: its timeline, chunks, workers, attempts and generations, each number counted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import update

from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.page_wire import MOST_BUCKETS, MOST_TROUBLES
from airflow_batch_llm.store import timelines
from airflow_batch_llm.store.chunks import ChunkLease
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.splitting import Pieces
from airflow_batch_llm.store.stories import Stories, Story
from airflow_batch_llm.store.tables import parts
from airflow_batch_llm.store.timelines import DAY, WIDTHS, width_of
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import LEASE, TEAM, Store, part, store

__all__ = ["store"]
pytestmark = BOTH_STORES


def story(store: Store, batch_id: str) -> Story:
    return Stories(store.database).of(store.batches.get(TEAM, batch_id))


def claimed(store: Store, worker_id: str) -> ChunkLease:
    lease = store.claim(worker_id)
    assert lease is not None
    return lease


def committed(store: Store, lease: ChunkLease, times: list[float], *, rows: int = 1) -> None:
    """Commits a part at each of these times."""
    for number, at in enumerate(times):
        store.now = at
        store.chunks.extend(lease, [part(number, rows)], lease_seconds=LEASE)


def counted(told: Story) -> dict[float, int]:
    return {bucket.at: bucket.rows for bucket in told.timeline.buckets}


def test_parts_are_added_up_in_buckets_that_begin_at_round_times_and_empty_ones_are_left_out(store: Store) -> None:
    batch_id = store.planned(rows=20)
    lease = claimed(store, store.worker())
    committed(store, lease, [1000.0, 1000.9, 1001.0, 1001.6, 1004.0])
    told = story(store, batch_id)
    assert told.first_commit == 1000.0
    assert told.timeline.bucket_seconds == 1
    assert counted(told) == {1000.0: 2, 1001.0: 2, 1004.0: 1}
    committed(store, claimed_again(store, lease), [1000.0 + 130])
    told = story(store, batch_id)
    assert told.timeline.bucket_seconds == 2
    assert counted(told) == {1000.0: 4, 1004.0: 1, 1130.0: 1}


def claimed_again(store: Store, lease: ChunkLease) -> ChunkLease:
    store.now += LEASE + 1
    again = claimed(store, store.worker("again"))
    assert again.chunk_id == lease.chunk_id
    return again


def test_a_bucket_has_all_that_was_committed_in_it(store: Store) -> None:
    batch_id = store.planned(rows=6)
    lease = claimed(store, store.worker())
    for number, failed in enumerate((0, 1, 2)):
        stored = part(number, rows=2)
        failing = stored.record.model_copy(update={"rows_failed": failed})
        store.chunks.extend(lease, [type(stored)(stored.storage_key, failing)], lease_seconds=LEASE)
    (bucket,) = story(store, batch_id).timeline.buckets
    assert (bucket.rows, bucket.failed, bucket.prompt_tokens, bucket.completion_tokens) == (6, 3, 9, 12)


def test_a_timeline_is_of_its_batch_alone(store: Store) -> None:
    first, second = store.planned(), store.planned()
    worker = store.worker()
    committed(store, claimed(store, worker), [1000.0])
    committed(store, claimed(store, worker), [1000.0], rows=3)
    assert (counted(story(store, first)), counted(story(store, second))) == ({1000.0: 1}, {1000.0: 3})


@pytest.mark.parametrize("seconds", [0.0, 119.5, 7_200.0, 40 * DAY, 900.0 * DAY])
def test_however_long_a_batch_takes_its_buckets_are_few_and_no_row_is_missing(store: Store, seconds: float) -> None:
    batch_id = store.planned(rows=200)
    lease = claimed(store, store.worker())
    store.chunks.extend(lease, [part(number, 1) for number in range(200)], lease_seconds=LEASE)
    chance = random.Random(seconds)
    with store.database.writing() as connection:
        for number in range(200):
            at = 1_000_000_000.3 + (seconds if number == 7 else chance.random() * seconds if number else 0.0)
            connection.execute(update(parts).where(parts.c.number == number).values(committed_at=at))
    told = story(store, batch_id).timeline
    assert 1 <= len(told.buckets) <= MOST_BUCKETS
    assert sum(bucket.rows for bucket in told.buckets) == 200
    assert all(bucket.at % told.bucket_seconds == 0 for bucket in told.buckets)
    assert sorted(told.buckets, key=lambda bucket: bucket.at) == told.buckets
    assert told.bucket_seconds in WIDTHS or told.bucket_seconds % DAY == 0


def test_a_width_is_the_least_that_is_round_and_enough() -> None:
    assert [width_of(0.0, last) for last in (0.0, 119.9, 120.0, 239.9, 240.0, 1199.0, 7199.0, 7200.0)] == (
        [1, 1, 2, 2, 5, 10, 60, 120]
    )
    assert width_of(0.5, 120.0) == 2  # 121 buckets of a second: both ends lie in one of their own
    assert width_of(0.0, 1_000.0 * DAY) == 9 * DAY


def test_a_batch_on_which_nobody_has_worked_has_no_timeline_and_no_attempts(store: Store) -> None:
    planned, never_planned = store.planned(chunks=2), store.submit()
    for batch_id, pending, rows in ((planned, 2, 8), (never_planned, 0, 0)):
        told = story(store, batch_id)
        assert (told.first_commit, told.timeline.buckets, told.workers) == (None, [], [])
        assert (told.attempts.total, told.attempts.outcomes, told.attempts.troubles) == (0, {}, [])
        assert (told.chunks.pending, told.chunks.leased, told.chunks.done, told.chunks.rows) == (pending, 0, 0, rows)
        assert told.at == store.now


def test_a_chunk_is_done_held_by_a_worker_or_waits(store: Store) -> None:
    batch_id = store.planned(chunks=4)
    worker = store.worker()
    first, _ = claimed(store, worker), claimed(store, worker)
    store.chunks.commit(first, [part(rows=4)])
    chunks = story(store, batch_id).chunks
    assert (chunks.done, chunks.leased, chunks.pending) == (1, 1, 2)
    Pauses(store.database).pause(TEAM, batch_id, PauseReason.REQUESTED)
    assert story(store, batch_id).chunks == chunks
    store.now += LEASE + 1
    chunks = story(store, batch_id).chunks
    assert (chunks.done, chunks.leased, chunks.pending) == (1, 0, 3)


def test_a_chunk_that_is_cut_into_pieces_has_the_same_rows(store: Store) -> None:
    batch_id = store.planned(rows=4)
    lease = claimed(store, store.worker())
    store.chunks.extend(lease, [part(rows=1)], lease_seconds=LEASE)
    store.chunks.split(lease, Pieces(kept=[1], cut=[[2], [3]], alone=True))
    chunks = story(store, batch_id).chunks
    assert (chunks.rows, chunks.leased, chunks.pending) == (4, 1, 2)


def test_a_worker_is_on_a_batch_while_it_holds_a_lease_of_it(store: Store) -> None:
    batch_id, other = store.planned(chunks=3), store.planned(priority=-1)
    one, two = store.worker("one"), store.worker("two")
    first, _, third = claimed(store, one), claimed(store, one), claimed(store, two)
    store.chunks.commit(first, [part(rows=4)])
    store.chunks.extend(third, [part(rows=1)], lease_seconds=LEASE)
    claimed(store, two)  # of the other batch
    on = {worker.name: worker for worker in story(store, batch_id).workers}
    assert {name: (worker.chunks, worker.rows_done) for name, worker in on.items()} == {"one": (1, 4), "two": (1, 1)}
    assert (on["one"].worker_id, on["two"].last_seen_at) == (one, store.now)
    assert [worker.name for worker in story(store, other).workers] == ["two"]
    store.chunks.release(third, [], outcome="drained")
    assert [worker.name for worker in story(store, batch_id).workers] == ["one"]
    store.now += LEASE + 1
    assert story(store, batch_id).workers == []


def test_the_rate_of_a_worker_is_that_of_the_last_minute_or_since_it_came(store: Store) -> None:
    batch_id = store.planned(rows=1_000)
    lease = claimed(store, store.worker())

    def rate() -> float | None:
        (worker,) = story(store, batch_id).workers
        return worker.rows_per_second

    assert rate() is None
    committed(store, lease, [1010.0], rows=100)
    assert rate() == 10.0
    store.now = 1060.0
    store.chunks.extend(lease, [part(1, 20)], lease_seconds=1_000)
    assert rate() == 2.0
    store.now = 1075.0
    assert rate() == pytest.approx(0.33)
    store.now = 1120.0
    assert rate() is None


def test_attempts_are_counted_by_how_they_ended_and_those_in_trouble_are_named(store: Store) -> None:
    batch_id = store.planned(chunks=3)
    worker = store.worker("gpu")
    first, second, third = (claimed(store, worker) for _ in range(3))
    store.chunks.commit(first, [part(rows=4)])
    store.chunks.release(second, [part(rows=1)], outcome="engine_died", rows_lost=3, in_flight=[1, 2, 3])
    store.chunks.release(third, [], outcome="drained")
    store.now += 5
    claimed(store, store.worker("other"))
    told = story(store, batch_id).attempts
    assert told.total == 4
    assert told.outcomes == {"committed": 1, "engine_died": 1, "drained": 1, "running": 1}
    (trouble,) = told.troubles
    assert (trouble.chunk, trouble.attempt, trouble.worker, trouble.outcome) == (1, 1, "gpu", "engine_died")
    assert (trouble.claimed_at, trouble.ended_at, trouble.rows, trouble.rows_lost) == (1000.0, 1000.0, 1, 3)
    assert trouble.detail is None


def test_an_attempt_whose_lease_ran_out_is_lost_whether_another_has_begun_or_not(store: Store) -> None:
    batch_id = store.planned()
    claimed(store, store.worker("gone"))
    assert story(store, batch_id).attempts.outcomes == {"running": 1}
    store.now += LEASE + 1
    told = story(store, batch_id).attempts
    assert (told.outcomes, told.troubles[0].ended_at) == ({"lease_lost": 1}, None)
    claimed(store, store.worker("next"))
    told = story(store, batch_id).attempts
    assert told.outcomes == {"lease_lost": 1, "running": 1}
    assert [(trouble.worker, trouble.ended_at) for trouble in told.troubles] == [("gone", store.now)]


def test_the_newest_troubles_are_told_and_all_are_counted(store: Store) -> None:
    batch_id = store.planned()
    worker = store.worker()
    for number in range(MOST_TROUBLES + 3):
        store.now += 1
        store.chunks.release(claimed(store, worker), [], outcome="engine_died", detail=f"death {number}")
    told = story(store, batch_id).attempts
    assert told.outcomes == {"engine_died": MOST_TROUBLES + 3}
    assert [trouble.attempt for trouble in told.troubles] == list(range(MOST_TROUBLES + 3, 3, -1))
    assert told.troubles[0].detail == f"death {MOST_TROUBLES + 2}"


def test_what_a_worker_says_of_an_attempt_is_cut_where_it_is_long(store: Store) -> None:
    batch_id = store.planned()
    store.chunks.release(claimed(store, store.worker()), [], outcome="engine_died", detail="x" * 10_000)
    (trouble,) = story(store, batch_id).attempts.troubles
    assert trouble.detail == "x" * 500


def test_generations_are_told_where_there_are_several(store: Store) -> None:
    def told(batch_id: str) -> list[tuple[str, int, str]]:
        return [(line.id, line.generation, line.status) for line in story(store, batch_id).generations]

    first = store.submit(key="k")
    store.submit(key="other")
    assert told(first) == []
    store.batches.cancel(TEAM, first)
    second = store.submit(key="k")
    for batch_id in (first, second):
        assert told(batch_id) == [(second, 2, "validating"), (first, 1, "cancelled")]


def test_a_timeline_is_read_from_the_index_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite, which says so whatever is in the tables."""
    batch_id = store.planned()
    committed(store, claimed(store, store.worker()), [1000.0])
    with store.database.reading() as connection:
        if connection.dialect.name == "postgresql":
            pytest.skip("What Postgres does depends on what it knows of the table.")
        plans: list[Any] = []
        execute = type(connection).execute

        def explained(self: Any, statement: Any, *arguments: Any) -> Any:
            compiled = statement.compile(self.engine, compile_kwargs={"literal_binds": True})
            plans.extend(self.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all())
            return execute(self, statement, *arguments)

        monkeypatch.setattr(type(connection), "execute", explained)
        timelines.timeline(connection, batch_id)
    walks = [plan[3] for plan in plans if "parts" in plan[3]]
    assert walks
    assert all("COVERING INDEX ix_parts_batch_id_committed_at" in walk for walk in walks), walks
