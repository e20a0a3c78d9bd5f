"""Which chunk is next: priority, then deadline, then turns between teams and between their groups."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from sqlalchemy import insert, select, text

from airflow_batch_llm.models import BatchStatus, ChunkState, DutyKind, PauseReason
from airflow_batch_llm.store.batches import NewBatch
from airflow_batch_llm.store.chunks import ChunkLease
from airflow_batch_llm.store.life import Plan, PlannedChunk
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.splitting import Pieces
from airflow_batch_llm.store.tables import batches, chunks
from airflow_batch_llm.worker_wire import Registration, ServedModel
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, LEASE, TEAM, Store, store

__all__ = ["store"]
pytestmark = BOTH_STORES
HOUR, DAY = 3_600.0, 86_400.0
LOW, HIGH = -100, 100


class Queue:
    """A store with one worker for all teams; batches have names of their own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.worker = store.worker()
        self.names: dict[str, str] = {}

    def add(self, name: str, *, chunks: int = 1, team: str = TEAM, **values: object) -> str:
        new = NewBatch(content_sha256="c", endpoint=CHAT, model="m", dataset={}, **values)  # type: ignore[arg-type]
        batch_id = str(self.store.batches.submit(team, new)["id"])
        duty = self.store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
        assert duty is not None
        planned = [
            PlannedChunk(number=number, rows=4, tokens=1, storage_key="k", bytes=1, sha256="s")
            for number in range(chunks)
        ]
        self.store.life.activate(
            duty, Plan(storage_key="p", rows_total=4 * chunks, rows_done=0, rows_failed=0, chunks=planned)
        )
        self.names[duty.batch_id] = name
        return batch_id

    def claim(self) -> str | None:
        chunk = self.store.chunks.claim(self.worker, lease_seconds=1e6)
        return None if chunk is None else self.names[chunk["batch_id"]]

    def next(self, count: int) -> list[str | None]:
        return [self.claim() for _ in range(count)]


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store)


def test_the_daily_run_overtakes_a_year_of_backfill_with_the_next_claim(queue: Queue) -> None:
    for day in range(30):
        queue.add("backfill", chunks=12, priority=LOW, fair_group="a year", series=f"day {day}")
    assert queue.next(3) == ["backfill"] * 3
    queue.add("today", chunks=3, priority=0, fair_group="a year")
    assert queue.next(4) == ["today"] * 3 + ["backfill"]


def test_a_priority_is_strict_whatever_the_deadlines(queue: Queue) -> None:
    queue.add("low, soon", priority=0, window_seconds=HOUR)
    queue.add("high, later", priority=1)
    assert queue.next(2) == ["high, later", "low, soon"]


def test_within_a_priority_the_earliest_deadline_goes_first_and_none_comes_last(queue: Queue) -> None:
    queue.add("none", priority=5)
    queue.add("a day", priority=5, window_seconds=DAY)
    queue.add("an hour", priority=5, window_seconds=HOUR)
    queue.add("six hours", priority=5, deadline=queue.store.now + 6 * HOUR)
    queue.add("half an hour, lower", priority=4, window_seconds=HOUR / 2)
    assert queue.next(5) == ["an hour", "six hours", "a day", "none", "half an hour, lower"]


def test_batches_with_the_same_window_at_nearly_the_same_time_are_equals(queue: Queue) -> None:
    queue.store.now = 20_000.0
    queue.add("big", chunks=5, window_seconds=DAY, fair_group="a")
    queue.store.now += 60
    queue.add("small", window_seconds=DAY, fair_group="b")
    assert queue.next(3) == ["big", "small", "big"]


@pytest.mark.parametrize("of_many", [True, False])
def test_neither_many_batches_of_a_group_nor_a_huge_one_keep_a_new_group_waiting(queue: Queue, of_many: bool) -> None:
    if of_many:
        for _ in range(40):
            queue.add("old", fair_group="backfill")
    else:
        queue.add("old", chunks=40, fair_group="backfill")
    queue.next(7)
    queue.add("new", chunks=2, fair_group="small")
    assert queue.next(5) == ["old", "new", "old", "new", "old"]


def test_a_new_group_waits_for_one_chunk_of_each_other_group_at_most(queue: Queue) -> None:
    for group in "abcde":
        queue.add(group, chunks=20, fair_group=group)
    queue.next(13)
    queue.add("new", chunks=2, fair_group="new")
    served = queue.next(12)
    assert "new" in served[:6]
    assert Counter(served).most_common()[-1][1] == 2  # nobody else had less than two turns meanwhile


def test_groups_share_equally_while_they_wait_and_the_rest_gets_what_is_left(queue: Queue) -> None:
    queue.add("long", chunks=9, fair_group="a")
    queue.add("short", chunks=3, fair_group="b")
    assert queue.next(12) == ["long", "short"] * 3 + ["long"] * 6


def test_more_of_a_group_waits_behind_what_that_has_already(queue: Queue) -> None:
    queue.add("a1", chunks=4, fair_group="a")
    queue.add("b", chunks=8, fair_group="b")
    queue.add("a2", chunks=4, fair_group="a")
    served = queue.next(16)
    assert [name for name in served if name != "b"] == ["a1"] * 4 + ["a2"] * 4
    assert served[1:8:2] + served[8::2] == ["b"] * 8  # one of each group in each turn


def test_a_batch_without_a_group_shares_with_its_series_or_with_nobody(queue: Queue) -> None:
    first = queue.add("one", chunks=3, series="s")
    queue.add("two", chunks=3)
    assert queue.store.batches.get(TEAM, first)["fair_group"] == "s"
    assert queue.next(4) == ["one", "two", "one", "two"]


def test_the_next_generation_is_of_the_same_group(queue: Queue) -> None:
    batch_id = queue.add("x", key="k", fair_group="g")
    store = queue.store
    store.batches.cancel(TEAM, batch_id)
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.finish(duty, BatchStatus.CANCELLED)
    assert store.batches.retry(TEAM, batch_id)["fair_group"] == "g"


def test_teams_share_equally_however_many_groups_they_have(queue: Queue) -> None:
    for group in "abcd":
        queue.add("many", team="many", chunks=10, fair_group=group)
    queue.add("one", team="one", chunks=10)
    served = queue.next(20)
    assert Counter(served) == {"many": 10, "one": 10}
    assert not any(one == two for one, two in pairwise(served))


def test_a_team_that_has_fewer_chunks_in_work_is_next(queue: Queue) -> None:
    queue.add("early", team="early", chunks=10)
    queue.next(4)
    queue.add("late", team="late", chunks=10)
    assert queue.next(4) == ["late"] * 4
    assert Counter(queue.next(4)) == {"late": 2, "early": 2}


def test_teams_alternate_for_a_worker_that_finishes_one_chunk_after_the_other(queue: Queue) -> None:
    for team in ("a", "b"):
        queue.add(team, team=team, chunks=4)
    served = []
    for _ in range(6):
        chunk = queue.store.chunks.claim(queue.worker, lease_seconds=LEASE)
        assert chunk is not None
        served.append(chunk["team"])
        with queue.store.database.writing() as connection:
            connection.execute(chunks.update().where(chunks.c.id == chunk["id"]).values(state=ChunkState.DONE))
    assert served == ["a", "b"] * 3


def test_a_worker_of_one_team_gets_nothing_of_another(queue: Queue) -> None:
    queue.add("theirs", team="others", priority=9)
    queue.add("ours")
    served = ServedModel(model="m", endpoint=CHAT)
    registration = Registration(name="own", version="1", models=[served])
    queue.worker = queue.store.workers.register(Pool(TEAM), registration)
    assert queue.next(2) == ["ours", None]


def test_the_deadline_of_a_low_priority_bounds_its_wait(queue: Queue) -> None:
    """Also for what comes back to it afterwards."""
    store = queue.store
    batch_id = queue.add("low", chunks=3, priority=LOW, window_seconds=HOUR)
    held = store.chunks.claim(queue.worker, lease_seconds=1e6)
    assert held is not None
    queue.add("high", chunks=20, priority=HIGH)
    queue.add("top", chunks=20, priority=1_000)
    store.now += 0.74 * HOUR
    store.life.raise_due()
    assert queue.claim() == "top"
    store.now += 0.02 * HOUR
    store.life.raise_due()
    assert queue.claim() == "low"
    store.chunks.release(ChunkLease(held["id"], held["attempt"]), [], outcome="drained")
    assert queue.next(3) == ["low", "low", "top"]
    assert store.batches.get(TEAM, batch_id)["priority"] == LOW  # as it was asked for


def test_what_is_raised_twice_is_raised_once_and_what_has_no_deadline_never(queue: Queue) -> None:
    queue.add("none", priority=LOW)
    queue.add("soon", priority=LOW, window_seconds=HOUR)
    queue.store.now += 0.8 * HOUR
    for _ in range(2):
        queue.store.life.raise_due()
    with queue.store.database.reading() as connection:
        found = connection.execute(select(batches.c.id, batches.c.raised)).all()
        priorities = connection.execute(select(chunks.c.batch_id, chunks.c.priority)).all()
    assert {queue.names[row.id]: row.raised for row in found} == {"none": False, "soon": True}
    assert {queue.names[row.batch_id]: row.priority for row in priorities} == {"none": LOW, "soon": 1_000}


def test_the_pieces_of_a_chunk_wait_where_it_would(queue: Queue) -> None:
    queue.add("split", chunks=2, fair_group="a", window_seconds=DAY, priority=3)
    chunk = queue.store.chunks.claim(queue.worker, lease_seconds=LEASE)
    assert chunk is not None
    queue.store.chunks.split(ChunkLease(chunk["id"], 1), Pieces(kept=[0], cut=[[1], [2, 3]], alone=True))
    with queue.store.database.reading() as connection:
        rows = connection.execute(select(chunks.c.priority, chunks.c.due, chunks.c.turn).order_by(chunks.c.id)).all()
    whole, other, *pieces = map(tuple, rows)
    assert pieces == [whole, whole]
    assert other != whole


def test_a_batch_that_was_paused_does_not_catch_up_on_its_turns(queue: Queue) -> None:
    paused = queue.add("paused", chunks=6, fair_group="a")
    queue.add("other", chunks=20, fair_group="b")
    pauses = Pauses(queue.store.database)
    pauses.pause(TEAM, paused, PauseReason.REQUESTED)
    assert queue.next(8) == ["other"] * 8
    pauses.resume(TEAM, paused)
    assert Counter(queue.next(8)) == {"other": 4, "paused": 4}


def test_a_thousand_waiting_batches_cost_a_claim_no_scan(queue: Queue) -> None:
    """It reads the index from the front, with as many groups as there are batches."""
    store = queue.store
    queue.add("one")
    values = {"team": TEAM, "generation": 1, "content_sha256": "c", "endpoint": CHAT, "model": "m", "created_at": 1.0}
    chunk = {"team": TEAM, "model": "m", "endpoint": CHAT, "rows": 1, "tokens": 1, "storage_key": "k", "bytes": 1}
    with store.database.writing() as connection:
        names = [f"b{number}" for number in range(1_000)]
        rows = [values | {"id": name, "key": name, "fair_group": name, "status": "in_progress"} for name in names]
        connection.execute(insert(batches), rows)
        more = {"sha256": "s", "state": ChunkState.PENDING, "number": 0, "priority": 0}
        connection.execute(insert(chunks), [chunk | more | {"batch_id": name} for name in names])
        connection.execute(text("ANALYZE"))
    assert queue.claim() == "one"
    queue.names |= {name: name for name in names}
    assert queue.next(3) == ["b0", "b1", "b2"]
