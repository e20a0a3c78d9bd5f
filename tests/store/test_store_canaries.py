"""While the first rows of a batch are not judged no other row is claimed, by whatever way the batch goes on."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from airflow_batch_llm.models import BatchStatus, CanaryState, DutyKind, PauseReason
from airflow_batch_llm.store.life import Plan, PlannedChunk
from airflow_batch_llm.store.splitting import Pieces
from airflow_batch_llm.store.tables import chunks
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import LEASE, TEAM, Store, part, store
from tests.store.test_store_pauses import CANARY, REQUESTED, pause, resume, states

__all__ = ["store"]
pytestmark = BOTH_STORES


def planned(store: Store, *, canary: int = 1, later: int = 2, paused: PauseReason | None = None, **values: Any) -> str:
    """A batch whose plan has so many chunks of two rows each in its canary, and so many after it."""
    batch_id = store.submit(**values)
    if paused is not None:
        pause(store, batch_id, paused)
    staged = [
        PlannedChunk(
            number=number, rows=2, tokens=9, storage_key=f"c{number}", bytes=1, sha256="0", later=number >= canary
        )
        for number in range(canary + later)
    ]
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    rows = 2 * len(staged)
    store.life.activate(duty, Plan(storage_key="p", rows_total=rows, rows_done=0, rows_failed=0, chunks=staged))
    return batch_id


def work(store: Store, worker: str) -> int:
    """Does all chunks that can be claimed; gives how many those were."""
    done = 0
    while (lease := store.claim(worker)) is not None:
        store.chunks.commit(lease, [part(0, rows=2)])
        done += 1
    return done


def now(store: Store, batch_id: str) -> tuple[Any, Any]:
    batch = store.batches.get(TEAM, batch_id)
    return batch["paused"], batch["canary"]


def test_the_other_rows_wait_until_the_canary_is_done_and_judged(store: Store) -> None:
    batch_id = planned(store, canary=2)
    worker = store.worker()
    assert now(store, batch_id) == (None, CanaryState.OPEN)
    lease = store.claim(worker)
    assert lease is not None
    store.chunks.commit(lease, [part(0, rows=2)])
    assert now(store, batch_id) == (None, CanaryState.OPEN)
    assert work(store, worker) == 1
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)
    assert resume(store, batch_id, CANARY) is None
    assert now(store, batch_id) == (None, CanaryState.PASSED)
    assert work(store, worker) == 2
    assert store.batches.get(TEAM, batch_id)["status"] == BatchStatus.FINALIZING


def test_a_canary_that_has_nothing_to_ask_is_done_at_once(store: Store) -> None:
    batch_id = planned(store, canary=0)
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)
    assert store.claim(store.worker()) is None


def test_a_canary_that_nothing_waits_for_holds_nothing_up(store: Store) -> None:
    batch_id = planned(store, canary=2, later=0)
    assert work(store, store.worker()) == 2
    assert now(store, batch_id) == (None, None)
    assert store.batches.get(TEAM, batch_id)["status"] == BatchStatus.FINALIZING


@pytest.mark.parametrize("when", ["before the plan", "while the canary runs", "when it is done"])
def test_a_person_who_pauses_and_resumes_does_not_let_the_rest_past_the_gate(store: Store, when: str) -> None:
    batch_id = planned(store, paused=REQUESTED if when == "before the plan" else None)
    worker = store.worker()
    if when == "while the canary runs":
        lease = store.claim(worker)
        assert lease is not None
        pause(store, batch_id)
        store.chunks.commit(lease, [part(0, rows=2)])
        assert now(store, batch_id) == (REQUESTED, CanaryState.OPEN)
    if when == "when it is done":
        work(store, worker)
        pause(store, batch_id)
    assert work(store, worker) == 0
    assert resume(store, batch_id, CANARY) == REQUESTED  # a gate that opens does not overrule the person
    resume(store, batch_id)
    work(store, worker)
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)
    assert states(store) == {"done": 1, "later": 2}
    resume(store, batch_id)
    assert work(store, worker) == 2


def test_a_chunk_of_the_canary_that_comes_back_or_is_split_is_the_canarys_still(store: Store) -> None:
    batch_id = planned(store)
    worker = store.worker()
    lease = store.claim(worker)
    assert lease is not None
    store.chunks.split(lease, Pieces(kept=[0], cut=[[1]], alone=False))
    store.chunks.commit(lease, [part(0, rows=1)])
    assert now(store, batch_id) == (None, CanaryState.OPEN)
    lease = store.claim(worker)
    assert lease is not None
    store.chunks.release(lease, [], outcome="stopped")
    assert now(store, batch_id) == (None, CanaryState.OPEN)
    lease = store.claim(worker)
    assert lease is not None
    store.chunks.commit(lease, [part(0, rows=1)])
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)
    assert states(store) == {"done": 2, "later": 2}


def test_a_lost_lease_of_the_canary_is_taken_up_by_another_worker(store: Store) -> None:
    batch_id = planned(store)
    store.claim(store.worker())
    store.now += LEASE + 1
    assert work(store, store.worker("another")) == 1
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)


@pytest.mark.parametrize("when", ["while the canary runs", "when it is done"])
def test_a_batch_that_is_cancelled_before_the_verdict_ends(store: Store, when: str) -> None:
    batch_id = planned(store)
    if when == "when it is done":
        work(store, store.worker())
    store.batches.cancel(TEAM, batch_id)
    assert states(store)["dropped"] >= 2
    assert (now(store, batch_id)[0], store.batches.get(TEAM, batch_id)["status"]) == (None, BatchStatus.CANCELLING)


def test_what_waited_for_the_verdict_takes_its_turn_and_does_not_catch_up(store: Store) -> None:
    batch_id = planned(store, later=3, fair_group="a")
    store.planned(chunks=6, fair_group="b")
    worker = store.worker()
    for _ in range(4):
        lease = store.claim(worker)
        assert lease is not None
        store.chunks.commit(lease, [part(0, rows=store.chunks.get(lease)["rows"])])
    assert now(store, batch_id) == (CANARY, CanaryState.OPEN)
    resume(store, batch_id)
    claimed = [store.chunks.claim(worker, lease_seconds=LEASE) for _ in range(6)]
    own = [chunk is not None and chunk["batch_id"] == batch_id for chunk in claimed]
    assert own in ([True, False] * 3, [False, True] * 3)


def test_what_waits_for_the_verdict_is_raised_with_its_batch(store: Store) -> None:
    batch_id = planned(store, window_seconds=100, priority=-5)
    store.now += 80
    store.life.raise_due()
    assert work(store, store.worker()) == 1
    resume(store, batch_id)
    with store.database.reading() as connection:
        assert set(connection.scalars(select(chunks.c.priority).where(chunks.c.state == "pending"))) == {1000}
