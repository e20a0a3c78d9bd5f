"""Workers and tokens: who is taken to be alive, who may call, and what a file of the store gives away."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from airflow_batch_llm.errors import ConflictError, LeaseLostError, NotFoundError
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.store.chunks import ChunkLease, Chunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import DutyLostError
from airflow_batch_llm.store.files import Files, StoredFile
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.store.tables import tokens
from airflow_batch_llm.store.tokens import Tokens
from airflow_batch_llm.store.workers import ALIVE_SECONDS
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import LEASE, POOL, TEAM, Store, part, store

__all__ = ["store"]
pytestmark = BOTH_STORES


def _served(store: Store) -> dict[str, int]:
    return {served.model: served.workers for served in store.workers.served(TEAM)}


def test_a_worker_that_only_extends_its_lease_still_serves_its_model(store: Store) -> None:
    store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    for _ in range(3):
        store.now += ALIVE_SECONDS / 2
        store.chunks.extend(lease, [], lease_seconds=LEASE)
    assert _served(store) == {"m": 1}


def test_a_worker_that_is_silent_or_left_serves_nothing(store: Store) -> None:
    store.worker("silent")
    store.now += ALIVE_SECONDS + 1
    assert _served(store) == {}
    leaving = store.worker("leaving")
    store.worker("staying")
    assert _served(store) == {"m": 2}
    store.workers.saw(POOL, leaving, gone=True)
    assert _served(store) == {"m": 1}


def test_a_worker_whose_name_another_took_must_register_again(store: Store) -> None:
    first = store.worker()
    store.worker()
    assert _served(store) == {"m": 1}
    with pytest.raises(NotFoundError, match="must register again"):
        store.workers.saw(POOL, first)


def test_a_refused_registration_takes_nothing_from_anybody(store: Store) -> None:
    store.planned()
    store.worker("a", identity="1")
    holder = store.worker("b", identity="1")
    lease = store.claim(holder)
    assert lease is not None
    with pytest.raises(ConflictError, match="was not registered"):
        store.worker("b", identity="2")
    store.workers.saw(POOL, holder)
    store.now += 1
    assert store.claim(holder) is None  # the lease still holds
    store.chunks.commit(lease, [part(rows=4)])


@pytest.mark.parametrize(("living", "new"), [("1", None), (None, "1")])
def test_an_engine_that_cannot_tell_what_it_is_is_not_taken_for_one_that_can(
    store: Store, living: str | None, new: str | None
) -> None:
    store.worker("a", identity=living)
    with pytest.raises(ConflictError, match="unequal answers"):
        store.worker("b", identity=new)


def test_an_engine_may_change_once_the_other_one_is_gone(store: Store) -> None:
    store.worker("a", identity="1")
    store.now += ALIVE_SECONDS + 1
    store.worker("b", identity="2")
    assert store.workers.identity_of(TEAM, "m") == "2"
    assert store.workers.identity_of(TEAM, "nobody's") is None


def test_a_token_is_known_by_its_hash_only_and_until_it_is_revoked(store: Store) -> None:
    held = Tokens(store.database)
    assert not held.any()
    held.add("a-secret-token", name="n", team="t")
    access = held.access_of("a-secret-token")
    assert access is not None
    assert (held.any(), access.team, held.access_of("another")) == (True, "t", None)
    with store.database.writing() as connection:
        [row] = connection.execute(select(tokens))
        assert "a-secret-token" not in repr(row)
        connection.execute(update(tokens).values(revoked_at=store.now))
    assert held.access_of("a-secret-token") is None


def test_a_team_reads_and_deletes_only_its_own_files(store: Store) -> None:
    files = Files(store.database)
    files.add(TEAM, StoredFile("f", "batch", "name", 1, "s", "k", 0.0, None))
    for call in (files.get, files.delete):
        with pytest.raises(NotFoundError):
            call("another", "f")
    files.delete(TEAM, "f")
    with pytest.raises(NotFoundError):
        files.get(TEAM, "f")


def test_a_migrated_store_migrates_again_and_keeps_what_it_holds(store: Store) -> None:
    batch_id = store.submit()
    store.database.migrate()
    assert store.status(batch_id) == "validating"


def test_no_chunk_is_claimed_twice_over_connections_of_different_processes(store: Store) -> None:
    store.planned(chunks=200)
    claimed: dict[str, list[int]] = {}

    def claim_all(worker_id: str) -> None:
        database = Database(store.url)
        found = claimed.setdefault(worker_id, [])
        while (chunk := Chunks(database).claim(worker_id, lease_seconds=3_600)) is not None:
            assert chunk["attempt"] == 1
            found.append(chunk["id"])
        database.close()

    threads = [threading.Thread(target=claim_all, args=[store.worker(f"w{number}")]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(chunk for chunks in claimed.values() for chunk in chunks) == list(range(1, 201))


def test_a_batch_whose_rows_all_have_their_result_goes_straight_to_its_end(store: Store) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.activate(duty, Plan(storage_key="p", rows_total=3, rows_done=3, rows_failed=3, chunks=[]))
    assert store.status(batch_id) == "finalizing"
    assert store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE) is not None


def test_a_plan_becomes_real_once(store: Store) -> None:
    store.submit()
    stale = store.duties.claim(DutyKind.PLAN, holder="a", lease_seconds=LEASE)
    store.duties.free_those_of("a")
    current = store.duties.claim(DutyKind.PLAN, holder="b", lease_seconds=LEASE)
    assert stale is not None
    assert current is not None
    plan = Plan(storage_key="p", rows_total=1, rows_done=0, rows_failed=0, chunks=[])
    with pytest.raises(DutyLostError):
        store.life.activate(stale, plan)
    store.life.activate(current, plan)
    with pytest.raises(DutyLostError):
        store.life.activate(current, plan)


def test_a_cancelled_batch_leaves_no_plan_to_be_made(store: Store) -> None:
    store.batches.cancel(TEAM, store.submit())
    assert not store.duties.due(DutyKind.PLAN)
    assert store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE) is None


@pytest.mark.parametrize("planned", [False, True])
def test_after_a_cancel_a_key_opens_a_new_generation_even_while_workers_are_at_the_old_one(
    store: Store, planned: bool
) -> None:
    first = store.planned(key="k") if planned else store.submit(key="k")
    lease = store.claim(store.worker())
    cancelled = store.batches.cancel(TEAM, first)
    assert cancelled["status"] == ("cancelling" if planned else "cancelled")
    second = store.batches.get(TEAM, store.submit(key="k"))
    assert second["generation"] == 2
    before = store.life.generation_before(second)
    assert (before and before["id"]) == (first if planned else None)
    if lease is not None:
        store.chunks.commit(lease, [part(rows=4)])
        assert store.batches.get(TEAM, first)["rows_done"] == 4


def test_a_chunk_that_was_committed_is_nobodys_any_more(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    store.chunks.commit(lease, [part(rows=4)])
    assert store.chunks.committed(lease)
    assert not store.chunks.committed(ChunkLease(lease.chunk_id, 2))
    for call in (
        lambda: store.chunks.extend(lease, [part(1)], lease_seconds=LEASE),
        lambda: store.chunks.release(lease, [], outcome="drained", detail=None, rows_lost=0),
        lambda: store.chunks.get(lease),
    ):
        with pytest.raises(LeaseLostError):
            call()
    assert store.batches.get(TEAM, batch_id)["rows_done"] == 4


def test_the_pace_is_that_of_the_last_minute(store: Store) -> None:
    batch_id = store.planned(rows=10)
    lease = store.claim(store.worker())
    assert lease is not None
    assert store.batches.rate(batch_id) is None
    store.now += 4
    store.chunks.extend(lease, [part()], lease_seconds=LEASE)
    rate = store.batches.rate(batch_id)
    assert rate is not None
    assert (rate.rows, rate.tokens) == (0.5, 1.75)
    assert store.batches.rates([batch_id, store.submit()]) == {batch_id: rate}
    store.now += 61
    assert store.batches.rate(batch_id) is None
