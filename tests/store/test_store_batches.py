"""Batches under keys: one living batch a key, holders, series, and what a new generation takes over."""

from __future__ import annotations

import pytest

from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.models import BatchStatus, DutyKind
from airflow_batch_llm.store.duties import DutyLostError
from airflow_batch_llm.store.life import Plan
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import LEASE, TEAM, Store, part, store

__all__ = ["store"]
pytestmark = BOTH_STORES


def _fail(store: Store) -> None:
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.fail(duty, [{"code": "x", "message": "y"}])


def test_submitting_twice_with_one_key_gives_one_living_batch(store: Store) -> None:
    assert store.submit(key="k") == store.submit(key="k")


def test_a_key_with_other_content_is_refused_while_its_batch_lives(store: Store) -> None:
    store.submit(key="k")
    with pytest.raises(ConflictError, match="Nothing was submitted"):
        store.submit(key="k", content_sha256="other")


def test_a_submit_may_replace_the_batch_of_other_content_under_its_key(store: Store) -> None:
    old = store.submit(key="k")
    new = store.submit(key="k", content_sha256="other", on_changed="resubmit")
    assert (store.status(old), store.status(new)) == ("cancelled", "validating")
    assert store.batches.get(TEAM, new)["generation"] == 2


def test_a_submit_that_may_replace_finds_its_batch_where_nothing_changed(store: Store) -> None:
    assert store.submit(key="k") == store.submit(key="k", on_changed="resubmit")


def test_after_a_bad_end_a_key_opens_a_new_generation(store: Store) -> None:
    first = store.submit(key="k")
    _fail(store)
    second = store.submit(key="k", content_sha256="other")
    assert first != second
    assert store.batches.get(TEAM, second)["generation"] == 2
    assert store.status(first) == "failed"


def test_batches_without_a_key_are_different_batches(store: Store) -> None:
    assert store.submit() != store.submit()


def test_only_the_current_holder_may_cancel_but_a_person_always(store: Store) -> None:
    batch_id = store.submit(key="k", holder="try 1")
    store.submit(key="k", holder="try 2")
    with pytest.raises(ConflictError, match="It goes on"):
        store.batches.cancel(TEAM, batch_id, holder="try 1")
    assert store.status(batch_id) == "validating"
    assert store.batches.cancel(TEAM, batch_id)["status"] == "cancelled"


def test_a_new_batch_of_a_series_cancels_the_living_one(store: Store) -> None:
    older = store.submit(key="k/1", series="s")
    newer = store.submit(key="k/2", series="s")
    assert (store.status(older), store.status(newer)) == ("cancelled", "validating")
    assert [store.batches.get(TEAM, batch)["superseded"] for batch in (older, newer)] == [True, False]
    with pytest.raises(ConflictError, match="its target is that one's now"):
        store.batches.retry(TEAM, older)


def test_a_plan_that_comes_after_the_cancel_changes_nothing(store: Store) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.batches.cancel(TEAM, batch_id)
    plan = Plan(storage_key="p", rows_total=1, rows_done=0, rows_failed=0, chunks=[])
    with pytest.raises(DutyLostError):
        store.life.activate(duty, plan)
    assert store.status(batch_id) == "cancelled"


def test_a_duty_is_done_by_one_at_a_time_and_taken_over_from_the_dead(store: Store) -> None:
    store.submit()
    first = store.duties.claim(DutyKind.PLAN, holder="a", lease_seconds=LEASE)
    assert store.duties.claim(DutyKind.PLAN, holder="b", lease_seconds=LEASE) is None
    store.now += LEASE + 1
    second = store.duties.claim(DutyKind.PLAN, holder="b", lease_seconds=LEASE)
    assert first is not None
    assert second is not None
    assert second.attempt == 2
    with pytest.raises(DutyLostError):
        store.duties.extend(first, lease_seconds=LEASE)
    with pytest.raises(DutyLostError):
        store.life.fail(first, [])


def test_a_duty_that_met_trouble_says_so_and_waits(store: Store) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="a", lease_seconds=LEASE)
    assert duty is not None
    store.duties.put_off(duty, trouble="the disk is full", seconds=5)
    assert store.batches.get(TEAM, batch_id)["trouble"] == "the disk is full"
    assert store.duties.claim(DutyKind.PLAN, holder="a", lease_seconds=LEASE) is None
    store.now += 6
    assert store.duties.claim(DutyKind.PLAN, holder="a", lease_seconds=LEASE) is not None


def test_the_duties_of_a_dead_process_are_free_at_once(store: Store) -> None:
    store.submit()
    store.duties.claim(DutyKind.PLAN, holder="dead", lease_seconds=LEASE)
    store.duties.free_those_of("dead")
    assert store.duties.claim(DutyKind.PLAN, holder="b", lease_seconds=LEASE) is not None


def test_a_cancel_that_comes_while_results_are_assembled_is_not_lost(store: Store) -> None:
    batch_id = store.planned()
    lease = store.claim(store.worker())
    assert lease is not None
    store.chunks.commit(lease, [part(rows=4)])
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.batches.cancel(TEAM, batch_id)
    with pytest.raises(DutyLostError):
        store.life.finish(duty, BatchStatus.COMPLETED)
    store.life.finish(duty, BatchStatus.CANCELLED)
    assert store.status(batch_id) == "cancelled"


def test_a_batch_that_ended_is_never_changed_again(store: Store) -> None:
    batch_id = store.submit()
    _fail(store)
    assert store.batches.cancel(TEAM, batch_id)["status"] == "failed"


def test_a_team_sees_only_its_own(store: Store) -> None:
    batch_id = store.submit(key="k")
    assert [batch["id"] for batch in store.batches.page(TEAM, after=None, limit=10)] == [batch_id]
    assert store.batches.page("another", after=None, limit=10) == []


def _end(store: Store, batch_id: str) -> None:
    """Cancels a batch while workers are at it, which are silent since."""
    store.batches.cancel(TEAM, batch_id)
    store.now += LEASE + 1
    store.life.settle_ending()
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.finish(duty, BatchStatus.CANCELLED)


def test_a_worker_that_wakes_up_late_writes_nothing_into_the_batch_that_came_after_its_own_was_deleted(
    store: Store,
) -> None:
    worker, leases = store.worker(), []
    for _ in range(3):
        batch_id = store.planned(chunks=2)
        leases += [store.claim(worker), store.claim(worker)]
        _end(store, batch_id)
        store.batches.delete(TEAM, batch_id)
    assert None not in leases
    assert len(set(leases)) == 6
    store.planned()
    store.claim(worker)
    for lease in leases:
        assert lease is not None
        with pytest.raises(LeaseLostError):
            store.chunks.extend(lease, [part()], lease_seconds=LEASE)
