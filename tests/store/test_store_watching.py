"""A batch that nobody watches is paused after its time, and goes on with the next look; the others never are."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_batch_llm.models import CanaryState, PauseReason
from airflow_batch_llm.store.changes import IDS_PER_QUERY
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.store.watching import NOTED_SECONDS, Watching
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import TEAM, Store, store
from tests.store.test_store_pauses import states

__all__ = ["store"]
pytestmark = BOTH_STORES
AFTER = 120


def unwatched(store: Store, seconds: float = AFTER) -> None:
    """Lets time go by, and the service do what is due."""
    store.now += seconds
    Watching(store.database).pause_due()


def look(store: Store, *batch_ids: str, team: str = TEAM) -> None:
    Watching(store.database).saw(team, batch_ids)


def paused(store: Store, batch_id: str) -> Any:
    return store.batches.get(TEAM, batch_id)["paused"]


def held(store: Store, **values: Any) -> str:
    return store.planned(**{"holder": "h", "pause_unwatched_after": AFTER, **values})


def test_a_batch_that_nobody_watches_is_paused_and_goes_on_with_the_next_look(store: Store) -> None:
    batch_id, other = held(store, chunks=2), store.planned()
    unwatched(store, AFTER - 1)
    assert paused(store, batch_id) is None
    unwatched(store, 1)
    assert (paused(store, batch_id), paused(store, other)) == (PauseReason.UNWATCHED, None)
    assert states(store) == {"held": 2, "pending": 1}
    look(store, batch_id)
    assert paused(store, batch_id) is None
    assert states(store) == {"pending": 3}
    unwatched(store, AFTER - 1)
    assert paused(store, batch_id) is None
    unwatched(store, 1)
    assert paused(store, batch_id) == PauseReason.UNWATCHED


def test_one_that_is_looked_at_again_and_again_is_not_paused(store: Store) -> None:
    batch_id = held(store)
    for _ in range(5):
        unwatched(store, AFTER - 2 * NOTED_SECONDS)
        look(store, batch_id, "batch_of_nobody")
    assert paused(store, batch_id) is None


def test_not_every_look_is_written_down(store: Store) -> None:
    batch_id = held(store)

    def until() -> float:
        return float(store.batches.get(TEAM, batch_id)["unwatched_at"])

    store.now += NOTED_SECONDS
    look(store, batch_id)
    assert until() == store.now - NOTED_SECONDS + AFTER
    store.now += 1
    look(store, batch_id)
    assert until() == store.now + AFTER


def test_another_teams_look_is_none(store: Store) -> None:
    batch_id = held(store)
    unwatched(store)
    look(store, batch_id, team="another")
    assert paused(store, batch_id) == PauseReason.UNWATCHED


def test_a_submit_under_its_key_is_a_look_and_says_anew_how_long(store: Store) -> None:
    batch_id = held(store, key="k")
    store.now += AFTER - 1
    assert store.submit(key="k", holder="next", pause_unwatched_after=10 * AFTER) == batch_id
    unwatched(store, 10 * AFTER - 1)
    assert paused(store, batch_id) is None
    store.submit(key="k", holder="the one after", pause_unwatched_after=None)
    unwatched(store, 1_000_000)
    assert paused(store, batch_id) is None


@pytest.mark.parametrize("after", [AFTER, None])
def test_one_that_is_found_by_its_key_while_it_is_paused_goes_on_with_the_first_look(
    store: Store, after: int | None
) -> None:
    batch_id = held(store, key="k")
    unwatched(store)
    store.submit(key="k", holder="next", pause_unwatched_after=after)
    look(store, batch_id)
    assert paused(store, batch_id) is None


def test_one_that_a_person_lets_go_on_is_not_paused_again_until_it_is_submitted_again(store: Store) -> None:
    batch_id = held(store, key="k")
    unwatched(store)
    Pauses(store.database).resume(TEAM, batch_id)
    unwatched(store, 10 * AFTER)
    look(store, batch_id)
    unwatched(store, 10 * AFTER)
    assert paused(store, batch_id) is None
    store.submit(key="k", holder="next", pause_unwatched_after=AFTER)
    unwatched(store)
    assert paused(store, batch_id) == PauseReason.UNWATCHED


def test_one_that_is_not_planned_yet_is_paused_too(store: Store) -> None:
    batch_id = store.submit(holder="h", pause_unwatched_after=AFTER)
    unwatched(store)
    assert paused(store, batch_id) == PauseReason.UNWATCHED


@pytest.mark.parametrize("reason", [PauseReason.REQUESTED, PauseReason.CANARY])
def test_one_that_is_paused_for_another_reason_stays_so_whoever_looks(store: Store, reason: PauseReason) -> None:
    batch_id = held(store)
    Pauses(store.database).pause(TEAM, batch_id, reason)
    unwatched(store)
    assert paused(store, batch_id) == reason
    look(store, batch_id)
    assert paused(store, batch_id) == reason


def test_one_whose_canary_was_done_while_nobody_watched_waits_for_its_verdict(store: Store) -> None:
    batch_id = held(store, canary_rows=4)
    with store.database.writing() as connection:  # as its plan leaves it
        connection.execute(batches.update().values(canary=CanaryState.OPEN))
    lease = store.claim(store.worker())
    assert lease is not None
    unwatched(store)
    store.chunks.release(lease, [], outcome="drained")
    look(store, batch_id)
    assert (paused(store, batch_id), states(store)) == (None, {"pending": 1})


def test_one_that_is_ending_or_has_ended_is_left_alone(store: Store) -> None:
    batch_id = held(store)
    store.batches.cancel(TEAM, batch_id)
    before = store.batches.get(TEAM, batch_id)
    unwatched(store)
    look(store, batch_id)
    assert store.batches.get(TEAM, batch_id) == before


def test_a_retry_that_a_person_asks_for_goes_on_unwatched(store: Store) -> None:
    batch_id = store.submit(holder="h", pause_unwatched_after=AFTER)
    store.batches.cancel(TEAM, batch_id)
    again = str(store.batches.retry(TEAM, batch_id)["id"])
    unwatched(store, 1_000_000)
    assert (again != batch_id, paused(store, again)) == (True, None)


def test_thousands_are_looked_at_in_one_go(store: Store) -> None:
    batch_id = held(store)
    unwatched(store)
    look(store, *(f"batch_{number}" for number in range(3 * IDS_PER_QUERY)), batch_id)
    assert paused(store, batch_id) is None
