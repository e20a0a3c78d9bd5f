"""Of a paused batch no chunk is claimed, by whatever way it came to wait; all else goes on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.models import DutyKind, PauseReason
from airflow_batch_llm.store.changes import BatchChanges
from airflow_batch_llm.store.health import Health
from airflow_batch_llm.store.life import Plan, PlannedChunk
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.splitting import Pieces
from airflow_batch_llm.store.tables import chunks
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import LEASE, TEAM, Store, part, store

__all__ = ["store"]
pytestmark = BOTH_STORES
REQUESTED, CANARY, UNWATCHED = PauseReason.REQUESTED, PauseReason.CANARY, PauseReason.UNWATCHED


def pause(store: Store, batch_id: str, reason: PauseReason = REQUESTED) -> Any:
    return Pauses(store.database).pause(TEAM, batch_id, reason)["paused"]


def resume(store: Store, batch_id: str, reason: PauseReason | None = None) -> Any:
    return Pauses(store.database).resume(TEAM, batch_id, reason=reason)["paused"]


def states(store: Store) -> Counter[str]:
    with store.database.reading() as connection:
        return Counter(connection.scalars(select(chunks.c.state)))


def test_no_chunk_of_a_paused_batch_is_claimed_and_those_of_others_are(store: Store) -> None:
    paused = store.planned(chunks=2, priority=9)
    other = store.planned()
    worker = store.worker()
    assert pause(store, paused) == REQUESTED
    chunk = store.chunks.claim(worker, lease_seconds=LEASE)
    assert chunk is not None
    assert chunk["batch_id"] == other
    assert store.claim(worker) is None
    assert resume(store, paused) is None
    assert [store.claim(worker) is None for _ in range(3)] == [False, False, True]


def test_what_a_worker_holds_goes_on_to_its_end_and_a_paused_batch_can_complete(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    pause(store, batch_id)
    assert store.chunks.extend(lease, [part()], lease_seconds=LEASE) is False
    store.chunks.commit(lease, [part(1)])
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["status"], batch["rows_done"], batch["paused"]) == ("finalizing", 4, None)


@pytest.mark.parametrize("way", ["released", "lease ran out", "its worker started again", "split"])
def test_a_chunk_that_comes_back_to_a_paused_batch_waits_too(store: Store, way: str) -> None:
    batch_id = store.planned()
    worker = store.worker()
    lease = store.claim(worker)
    assert lease is not None
    pause(store, batch_id)
    if way == "released":
        store.chunks.release(lease, [], outcome="drained")
    elif way == "split":
        store.chunks.split(lease, Pieces(kept=[0], cut=[[1], [2, 3]], alone=True))
        store.chunks.release(lease, [], outcome="drained")
    elif way == "lease ran out":
        store.now += LEASE + 1
    else:
        store.worker()
        store.now += 1
    worker = store.worker("another")
    assert store.claim(worker) is None
    assert set(states(store)) == {"held" if way in ("released", "split") else "leased"}
    resume(store, batch_id)
    again = store.claim(worker)
    assert again is not None
    assert (again.chunk_id, again.attempt) == (lease.chunk_id, 2)


def test_a_batch_that_is_paused_before_its_plan_is_planned_and_waits(store: Store) -> None:
    batch_id = store.submit()
    pause(store, batch_id)
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    chunk = PlannedChunk(number=0, rows=4, tokens=1, storage_key="k", bytes=1, sha256="s")
    store.life.activate(duty, Plan(storage_key="p", rows_total=4, rows_done=0, rows_failed=0, chunks=[chunk]))
    assert store.status(batch_id) == "in_progress"
    worker = store.worker()
    assert store.claim(worker) is None
    assert states(store) == {"held": 1}
    resume(store, batch_id)
    assert store.claim(worker) is not None


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_a_paused_batch_is_cancelled_and_expires_as_any_other_and_its_next_generation_runs(
    store: Store, end: str
) -> None:
    batch_id = store.planned(chunks=2, key="k", window_seconds=5)
    pause(store, batch_id)
    if end == "cancelled":
        store.batches.cancel(TEAM, batch_id)
    else:
        store.now += 6
        store.life.expire_due()
    assert states(store) == {"dropped": 2}
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.finish(duty, end)  # type: ignore[arg-type]
    assert store.batches.get(TEAM, batch_id)["paused"] is None
    again = store.planned(key="k")
    assert again != batch_id
    assert store.batches.get(TEAM, again)["paused"] is None
    assert store.claim(store.worker()) is not None


def test_a_submit_under_the_key_of_a_paused_batch_finds_it_paused(store: Store) -> None:
    batch_id = store.planned(key="k")
    pause(store, batch_id)
    assert store.submit(key="k", holder="h") == batch_id
    assert store.batches.get(TEAM, batch_id)["paused"] == REQUESTED


def test_a_pause_and_a_resume_that_are_said_twice_are_said_once(store: Store) -> None:
    batch_id = store.planned()
    assert [pause(store, batch_id) for _ in range(2)] == [REQUESTED, REQUESTED]
    assert states(store) == {"held": 1}
    assert [resume(store, batch_id) for _ in range(2)] == [None, None]
    assert states(store) == {"pending": 1}


def test_what_a_person_asks_for_outlives_the_other_reasons(store: Store) -> None:
    batch_id = store.planned()
    assert pause(store, batch_id, CANARY) == CANARY
    assert pause(store, batch_id, UNWATCHED) == CANARY
    assert resume(store, batch_id, UNWATCHED) == CANARY
    assert pause(store, batch_id, REQUESTED) == REQUESTED
    assert pause(store, batch_id, UNWATCHED) == REQUESTED
    assert resume(store, batch_id, CANARY) == REQUESTED
    assert resume(store, batch_id) is None
    assert pause(store, batch_id, UNWATCHED) == UNWATCHED
    assert resume(store, batch_id, UNWATCHED) is None


@pytest.mark.parametrize("status", ["cancelling", "finalizing", "cancelled"])
def test_one_that_ends_or_has_ended_is_neither_paused_nor_resumed(store: Store, status: str) -> None:
    batch_id = store.submit() if status == "cancelled" else store.planned()
    if status == "finalizing":
        lease = store.claim(store.worker())
        assert lease is not None
        store.chunks.commit(lease, [part(rows=4)])
    else:
        store.batches.cancel(TEAM, batch_id)
    assert store.status(batch_id) == status
    for verb in (pause, resume):
        with pytest.raises(ConflictError, match=f"is {status}: only one that .* Nothing was changed"):
            verb(store, batch_id)


def test_another_teams_batch_is_not_there(store: Store) -> None:
    batch_id = store.planned()
    with pytest.raises(NotFoundError):
        Pauses(store.database).pause("others", batch_id, REQUESTED)
    with pytest.raises(NotFoundError):
        Pauses(store.database).resume("others", batch_id)


def test_a_pause_is_a_change_that_who_watches_hears_of(store: Store) -> None:
    batch_id = store.planned()
    changes = BatchChanges(store.database)
    before = changes.versions([batch_id])
    pause(store, batch_id)
    assert changes.versions([batch_id]) != before


def test_a_lease_of_a_paused_batch_that_ran_out_is_nothing_wrong(store: Store) -> None:
    batch_id = store.planned()
    store.claim(store.worker())
    store.now += 1_000
    assert len(Health(store.database).stuck_chunks(60)) == 1
    pause(store, batch_id)
    assert Health(store.database).stuck_chunks(60) == []
