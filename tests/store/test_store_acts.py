"""Who did what with a batch is on record where it changed something, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from airflow_batch_llm.errors import ConflictError
from airflow_batch_llm.models import BatchStatus, DutyKind, PauseReason
from airflow_batch_llm.page_wire import MOST_ACTS
from airflow_batch_llm.store.acts import acts_of
from airflow_batch_llm.store.batches import NewBatch, forget_batch
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.tables import acts
from airflow_batch_llm.store.watching import Watching
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, LEASE, TEAM, Store, store

__all__ = ["store"]
pytestmark = BOTH_STORES
REQUESTED, CANARY = PauseReason.REQUESTED, PauseReason.CANARY


def submitted(store: Store, by: str = "ann", **values: Any) -> str:
    new = NewBatch(**{"content_sha256": "c", "endpoint": CHAT, "model": "m", "dataset": {}, **values})
    return str(store.batches.submit(TEAM, new, by=by)["id"])


def noted(store: Store, batch_id: str) -> list[str]:
    """The acts of a batch, the first one first."""
    with store.database.reading() as connection:
        return [f"{act.act} {act.by}" for act in reversed(acts_of(connection, batch_id))]


def ended(store: Store, batch_id: str) -> None:
    """Ends a cancelled batch as an assembler does."""
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    assert duty.batch_id == batch_id
    store.life.finish(duty, BatchStatus.CANCELLED)


def test_each_act_is_noted_with_who_did_it_and_when_and_the_newest_comes_first(store: Store) -> None:
    batch_id = submitted(store)
    pauses = Pauses(store.database)
    store.now += 5
    pauses.pause(TEAM, batch_id, REQUESTED, by="bob")
    pauses.resume(TEAM, batch_id, by="cid")
    store.batches.cancel(TEAM, batch_id, by="dora")
    with store.database.reading() as connection:
        found = [(act.at, act.act, act.by) for act in acts_of(connection, batch_id)]
    assert found == [
        (1005.0, "cancel", "dora"),
        (1005.0, "resume", "cid"),
        (1005.0, "pause", "bob"),
        (1000.0, "submit", "ann"),
    ]


def test_an_act_that_changes_nothing_is_not_noted(store: Store) -> None:
    batch_id = submitted(store, key="k")
    pauses = Pauses(store.database)
    assert submitted(store, "bob", key="k") == batch_id
    pauses.resume(TEAM, batch_id, by="bob")
    for _ in range(2):
        pauses.pause(TEAM, batch_id, REQUESTED, by="cid")
    pauses.resume(TEAM, batch_id, reason=CANARY, by="dora")
    for _ in range(2):
        store.batches.cancel(TEAM, batch_id, by="eve")
    assert noted(store, batch_id) == ["submit ann", "pause cid", "cancel eve"]


def test_an_act_that_is_refused_is_not_noted(store: Store) -> None:
    batch_id = submitted(store, holder="h")
    with pytest.raises(ConflictError):
        store.batches.cancel(TEAM, batch_id, holder="another", by="bob")
    with pytest.raises(ConflictError):
        store.batches.retry(TEAM, batch_id, by="bob")
    store.batches.cancel(TEAM, batch_id, by="ann")
    with pytest.raises(ConflictError):
        Pauses(store.database).pause(TEAM, batch_id, REQUESTED, by="bob")
    assert noted(store, batch_id) == ["submit ann", "cancel ann"]


def test_what_the_service_pauses_is_nobodys_act_and_a_persons_pause_of_it_is_one(store: Store) -> None:
    batch_id = submitted(store, holder="h", pause_unwatched_after=120)
    store.now += 121
    Watching(store.database).pause_due()
    assert store.batches.get(TEAM, batch_id)["paused"] == PauseReason.UNWATCHED
    assert noted(store, batch_id) == ["submit ann"]
    Pauses(store.database).pause(TEAM, batch_id, REQUESTED, by="bob")
    Pauses(store.database).resume(TEAM, batch_id, by="cid")
    assert noted(store, batch_id) == ["submit ann", "pause bob", "resume cid"]


def test_a_retry_is_noted_with_both_generations_and_once(store: Store) -> None:
    first = store.planned(key="k")
    store.batches.cancel(TEAM, first, by="ann")
    ended(store, first)
    second = str(store.batches.retry(TEAM, first, by="bob")["id"])
    assert store.batches.retry(TEAM, first, by="cid")["id"] == second
    assert noted(store, first) == ["cancel ann", "retry bob"]
    assert noted(store, second) == ["retry bob"]


@pytest.mark.parametrize("way", ["of its series", "of its key"])
def test_who_submits_a_batch_cancels_the_one_that_it_replaces(store: Store, way: str) -> None:
    if way == "of its series":
        older = submitted(store, key="k", series="s")
        newer = submitted(store, "bob", key="l", series="s")
    else:
        older = submitted(store, key="k")
        newer = submitted(store, "bob", key="k", content_sha256="other", on_changed="resubmit")
    assert noted(store, older) == ["submit ann", "cancel bob"]
    assert noted(store, newer) == ["submit bob"]


def test_the_newest_acts_are_shown_however_many_there_are(store: Store) -> None:
    batch_id = submitted(store)
    pauses = Pauses(store.database)
    for number in range(MOST_ACTS):
        pauses.pause(TEAM, batch_id, REQUESTED, by=f"p{number}")
        pauses.resume(TEAM, batch_id, by="r")
    found = noted(store, batch_id)
    assert len(found) == MOST_ACTS
    assert found[-2:] == [f"pause p{MOST_ACTS - 1}", "resume r"]


def test_acts_go_with_the_record_of_their_batch(store: Store) -> None:
    gone, kept = submitted(store), submitted(store)
    for batch_id in (gone, kept):
        store.batches.cancel(TEAM, batch_id, by="bob")
    store.batches.delete(TEAM, gone)
    assert noted(store, gone) == []
    assert noted(store, kept) == ["submit ann", "cancel bob"]
    with store.database.writing() as connection:
        forget_batch(connection, kept)
        assert connection.scalar(select(func.count()).select_from(acts)) == 0
