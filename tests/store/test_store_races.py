"""What two transactions make of each other on a real Postgres: in every order of their commits one truth is left.

The first is stopped in its course (before its commit, or behind a statement), the second begins, and once that waits or
is through the first goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, func, select, text, update

from airflow_batch_llm.errors import BatchLLMError, ConflictError, InvalidRequestError, LeaseLostError, NotFoundError
from airflow_batch_llm.models import ChunkState, DutyKind, PauseReason
from airflow_batch_llm.store.changes import BatchChanges
from airflow_batch_llm.store.chunks import ChunkLease
from airflow_batch_llm.store.database import Database, StoreConflictError, tried_again
from airflow_batch_llm.store.duties import DutyLostError
from airflow_batch_llm.store.files import Files, StoredFile
from airflow_batch_llm.store.index_files import IndexFiles
from airflow_batch_llm.store.life import Plan, PlannedChunk
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.tables import batches, chunks, duties, index_batches, parts
from airflow_batch_llm.store.team_secrets import TeamSecrets
from airflow_batch_llm.store.watching import Watching
from airflow_batch_llm.worker_wire import Registration, ServedModel
from tests.conftest import eventually
from tests.postgres import Postgres
from tests.store.test_store_chunks import CHAT, LEASE, POOL, TEAM, Store, part

Verb = Callable[[Store], Any]


@pytest.fixture
def store(postgres_server: Postgres) -> Iterator[Store]:
    opened = Store(postgres_server.migrated())
    yield opened
    assert _deadlocks(opened) == 0
    opened.database.close()


def _deadlocks(store: Store) -> int:
    with store.database.reading() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        return int(connection.scalar(text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")))


def _waiting(store: Store) -> bool:
    """Whether a transaction on this store waits for another one's lock."""
    with store.database.reading() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(connection.scalar(text(query)))


class Side:
    """One verb in a thread and over connections of its own; it gives what it gave or the error that it raised."""

    def __init__(self, store: Store, verb: Verb) -> None:
        self.store = Store(store.url, now=store.now)
        self.outcome: Any = None
        self._verb = verb
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> Any:
        self._thread.join(20)
        assert self.over, "It waits for ever."
        self.store.database.close()
        return self.outcome

    def _run(self) -> None:
        try:
            self.outcome = self._verb(self.store)
        except Exception as error:  # noqa: BLE001 (it is what the verb gave)
            self.outcome = error


def overlapping(
    store: Store, first: Verb, second: Verb, *, behind: str | None = None, waits: bool | None = None
) -> tuple[Any, Any]:
    """What both gave, where the second begins while the first is before its commit, or ``behind`` a statement.

    ``waits`` is whether the second is to wait for the first, where that matters.
    """
    reached, go_on = threading.Event(), threading.Event()
    one, two = Side(store, first), Side(store, second)

    def stop(*_: Any) -> None:
        if not reached.is_set():
            reached.set()
            assert go_on.wait(20)

    def stop_behind(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if behind is not None and behind in statement:
            stop()

    if behind is None:
        event.listen(one.store.database._engine, "commit", stop)
    else:
        event.listen(one.store.database._engine, "after_cursor_execute", stop_behind)
    one.start()
    assert reached.wait(10), f"The first never came that far: {one.outcome!r}"
    two.start()
    eventually(lambda: two.over or _waiting(store), what="the second waits or is through")
    assert waits in (None, not two.over)
    go_on.set()
    return one.join(), two.join()


def _count(store: Store, table: Any, *where: Any) -> int:
    with store.database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(table).where(*where)) or 0


def _lease(store: Store, name: str = "w") -> ChunkLease:
    lease = store.claim(store.worker(name))
    assert lease is not None
    return lease


def _lease_of_asker(store: Store, name: str) -> ChunkLease:
    served = ServedModel(model="m", endpoint=CHAT)
    registration = Registration(name=name, version="1", models=[served], server="a-server")
    lease = store.claim(store.workers.register(POOL, registration))
    assert lease is not None
    return lease


def _ended(store: Store, **values: Any) -> str:
    batch_id = store.planned(**values)
    store.batches.cancel(TEAM, batch_id)
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None
    store.life.finish(duty, "cancelled")
    return batch_id


def test_two_submits_at_once_under_a_new_key_give_one_batch(store: Store) -> None:
    first, second = overlapping(store, lambda one: one.submit(key="k"), lambda two: two.submit(key="k", holder="h"))
    assert first == second
    assert _count(store, batches) == 1
    assert store.batches.get(TEAM, first)["holder"] == "h"


def test_two_submits_at_once_in_one_series_leave_one_living(store: Store) -> None:
    first, second = overlapping(
        store, lambda one: one.submit(key="k/1", series="s"), lambda two: two.submit(key="k/2", series="s")
    )
    assert (store.status(first), store.status(second)) == ("cancelled", "validating")


def test_of_two_chunks_whose_rows_must_be_alone_at_one_server_one_begins(store: Store) -> None:
    store.planned(chunks=2)
    with store.database.writing() as connection:
        connection.execute(update(chunks).values(alone=True))
    leases = [_lease_of_asker(store, name) for name in ("one", "other")]
    begins: list[Verb] = [lambda side, lease=lease: side.chunks.begin(lease, lease_seconds=LEASE) for lease in leases]  # type: ignore[misc]
    begun = overlapping(store, *begins, waits=True)
    assert [answer.wait for answer in begun] == [False, True]


def test_two_retries_at_once_open_one_generation(store: Store) -> None:
    batch_id = _ended(store, key="k")
    retry: Verb = lambda side: side.batches.retry(TEAM, batch_id)["id"]  # noqa: E731
    first, second = overlapping(store, retry, retry)
    assert first == second
    assert _count(store, batches) == 2


def test_a_retry_and_a_submit_at_once_open_one_generation(store: Store) -> None:
    batch_id = _ended(store, key="k")
    retried, submitted = overlapping(
        store, lambda one: one.batches.retry(TEAM, batch_id)["id"], lambda two: two.submit(key="k")
    )
    assert retried == submitted


def test_a_submit_does_not_find_the_batch_that_is_just_deleted(store: Store) -> None:
    batch_id = _ended(store, key="k")
    _, found = overlapping(store, lambda one: one.batches.delete(TEAM, batch_id), lambda two: two.submit(key="k"))
    assert found != batch_id
    assert store.status(found) == "validating"


def test_a_batch_is_cancelled_and_deleted_while_it_is_submitted_again(store: Store) -> None:
    batch_id = store.submit(key="k")
    store.batches.cancel(TEAM, batch_id)
    again, deleted = overlapping(store, lambda one: one.submit(key="k"), lambda two: two.batches.delete(TEAM, batch_id))
    assert deleted is None
    assert (store.status(again), store.batches.get(TEAM, again)["generation"]) == ("validating", 2)


def test_the_last_two_chunks_that_are_committed_at_once_end_the_batch_once(store: Store) -> None:
    batch_id = store.planned(chunks=2)
    leases = [_lease(store, "a"), _lease(store, "b")]
    outcome = overlapping(
        store,
        lambda one: one.chunks.commit(leases[0], [part(rows=4)]),
        lambda two: two.chunks.commit(leases[1], [part(rows=4)]),
    )
    assert outcome == (None, None)
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["status"], batch["chunks_done"], batch["rows_done"]) == ("finalizing", 2, 8)
    assert _count(store, duties, duties.c.kind == DutyKind.ASSEMBLE) == 1


@pytest.mark.parametrize("verb", ["extend", "commit"])
def test_a_call_that_comes_twice_at_once_counts_once(store: Store, verb: str) -> None:
    batch_id = store.planned()
    lease = _lease(store)
    calls: dict[str, Verb] = {
        "extend": lambda side: side.chunks.extend(lease, [part(rows=4)], lease_seconds=LEASE),
        "commit": lambda side: side.chunks.commit(lease, [part(rows=4)]),
    }
    first, second = overlapping(store, calls[verb], calls[verb])
    assert first == second
    assert not isinstance(second, Exception)
    assert store.batches.get(TEAM, batch_id)["rows_done"] == 4
    assert _count(store, parts) == 1


def test_two_claims_at_once_get_two_chunks_and_neither_waits(store: Store) -> None:
    store.planned(chunks=2)
    workers = [store.worker("a"), store.worker("b")]
    claimed = overlapping(store, lambda one: one.claim(workers[0]), lambda two: two.claim(workers[1]), waits=False)
    assert sorted(lease.chunk_id for lease in claimed) == [1, 2]


def test_a_chunk_that_is_just_claimed_is_nobody_elses(store: Store) -> None:
    store.planned()
    workers = [store.worker("a"), store.worker("b")]
    claimed = overlapping(store, lambda one: one.claim(workers[0]), lambda two: two.claim(workers[1]))
    assert claimed == (ChunkLease(1, 1), None)


def test_a_lease_that_is_just_extended_is_not_taken_over(store: Store) -> None:
    store.planned()
    lease = _lease(store)
    other = store.worker("other")
    store.now += LEASE + 1
    extended, claimed = overlapping(
        store, lambda one: one.chunks.extend(lease, [], lease_seconds=LEASE), lambda two: two.claim(other)
    )
    assert (extended, claimed) == (False, None)
    assert store.claim(other) is None


def test_a_lease_that_is_just_taken_over_is_lost_to_its_old_holder(store: Store) -> None:
    batch_id = store.planned()
    lease = _lease(store)
    other = store.worker("other")
    store.now += LEASE + 1
    claimed, extended = overlapping(
        store, lambda one: one.claim(other), lambda two: two.chunks.extend(lease, [part()], lease_seconds=LEASE)
    )
    assert claimed == ChunkLease(lease.chunk_id, 2)
    assert isinstance(extended, LeaseLostError)
    assert store.batches.get(TEAM, batch_id)["rows_done"] == 0


def test_a_chunk_that_is_claimed_while_its_batch_is_cancelled_is_lost_and_the_batch_ends_once(store: Store) -> None:
    batch_id = store.planned()
    worker = store.worker()
    lease, _ = overlapping(store, lambda one: one.claim(worker), lambda two: two.batches.cancel(TEAM, batch_id))
    with pytest.raises(LeaseLostError):
        store.chunks.commit(lease, [part(rows=4)])
    assert _count(store, duties, duties.c.kind == DutyKind.ASSEMBLE) == 1
    assert _count(store, chunks, chunks.c.state == ChunkState.DROPPED) == 1


def test_no_chunk_of_a_batch_that_was_just_cancelled_is_claimed(store: Store) -> None:
    batch_id = store.planned(chunks=2)
    worker = store.worker()
    _, claimed = overlapping(store, lambda one: one.batches.cancel(TEAM, batch_id), lambda two: two.claim(worker))
    assert claimed is None


def _pause(batch_id: str) -> Verb:
    return lambda side: Pauses(side.database).pause(TEAM, batch_id, PauseReason.REQUESTED)["paused"]


def _resume(batch_id: str) -> Verb:
    return lambda side: Pauses(side.database).resume(TEAM, batch_id)["paused"]


def test_no_chunk_of_a_batch_that_was_just_paused_is_claimed(store: Store) -> None:
    batch_id = store.planned(chunks=2)
    worker = store.worker()
    _, claimed = overlapping(store, _pause(batch_id), lambda two: two.claim(worker), waits=False)
    assert claimed is None
    assert store.claim(worker) is None


def test_a_chunk_that_is_just_claimed_is_not_held_back_by_a_pause(store: Store) -> None:
    batch_id = store.planned(chunks=2)
    worker = store.worker()
    lease, _ = overlapping(store, lambda one: one.claim(worker), _pause(batch_id), waits=True)
    assert _count(store, chunks, chunks.c.state == ChunkState.HELD) == 1
    store.chunks.commit(lease, [part(rows=4)])


@pytest.mark.parametrize("pause_first", [True, False])
def test_a_chunk_that_comes_back_while_its_batch_is_paused_is_held_back(store: Store, pause_first: bool) -> None:
    batch_id = store.planned()
    lease = _lease(store)
    sides: list[Verb] = [_pause(batch_id), lambda side: side.chunks.release(lease, [], outcome="drained")]
    overlapping(store, *(sides if pause_first else reversed(sides)), waits=True)
    assert _count(store, chunks, chunks.c.state == ChunkState.HELD) == 1


@pytest.mark.parametrize("resume_first", [True, False])
def test_a_chunk_that_comes_back_while_its_batch_is_resumed_can_be_claimed(store: Store, resume_first: bool) -> None:
    batch_id = store.planned()
    lease = _lease(store)
    _pause(batch_id)(store)
    sides: list[Verb] = [_resume(batch_id), lambda side: side.chunks.release(lease, [], outcome="drained")]
    overlapping(store, *(sides if resume_first else reversed(sides)), waits=True)
    assert _count(store, chunks, chunks.c.state == ChunkState.PENDING) == 1


@pytest.mark.parametrize("pause_first", [True, False])
def test_a_batch_that_is_looked_at_in_the_moment_it_is_paused_for_want_of_looks_goes_on(
    store: Store, pause_first: bool
) -> None:
    batch_id = store.planned(holder="h", pause_unwatched_after=120)
    store.now += 120
    sides: list[Verb] = [
        lambda side: Watching(side.database).pause_due(),
        lambda side: Watching(side.database).saw(TEAM, [batch_id]),
    ]
    overlapping(store, *(sides if pause_first else reversed(sides)), waits=True)
    assert store.batches.get(TEAM, batch_id)["paused"] is None
    assert _count(store, chunks, chunks.c.state == ChunkState.PENDING) == 1


@pytest.mark.parametrize("pause_first", [True, False])
def test_a_plan_that_comes_with_a_pause_waits_whole(store: Store, pause_first: bool) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    pieces = [PlannedChunk(number=n, rows=1, tokens=1, storage_key="k", bytes=1, sha256="s") for n in range(2)]
    plan = Plan(storage_key="p", rows_total=2, rows_done=0, rows_failed=0, chunks=pieces)
    sides: list[Verb] = [_pause(batch_id), lambda side: side.life.activate(duty, plan)]
    overlapping(store, *(sides if pause_first else reversed(sides)), waits=True)
    assert _count(store, chunks, chunks.c.state == ChunkState.HELD) == 2


def _turns(store: Store) -> list[int]:
    with store.database.reading() as connection:
        return sorted(connection.scalars(select(chunks.c.turn).where(chunks.c.state == ChunkState.PENDING)))


def test_two_plans_of_one_group_at_once_get_turns_behind_each_other(store: Store) -> None:
    for _ in range(2):
        store.submit(fair_group="g")
    both = [store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE) for _ in range(2)]
    chunk = PlannedChunk(number=0, rows=1, tokens=1, storage_key="k", bytes=1, sha256="s")
    plan = Plan(storage_key="p", rows_total=1, rows_done=0, rows_failed=0, chunks=[chunk])
    verbs: list[Verb] = [lambda side, duty=duty: side.life.activate(duty, plan) for duty in both]  # type: ignore[misc]
    assert overlapping(store, *verbs, waits=True) == (None, None)
    assert _turns(store) == [0, 1]


def test_two_batches_of_one_group_that_are_resumed_at_once_get_turns_behind_each_other(store: Store) -> None:
    both = [store.planned(fair_group="g") for _ in range(2)]
    for batch_id in both:
        _pause(batch_id)(store)
    assert overlapping(store, *map(_resume, both), waits=True) == (None, None)
    assert _turns(store) == [0, 1]


@pytest.mark.parametrize("raise_first", [True, False])
def test_a_batch_that_is_raised_while_it_is_paused_is_both(store: Store, raise_first: bool) -> None:
    batch_id = store.planned(window_seconds=10)
    store.now += 8
    sides: list[Verb] = [lambda side: side.life.raise_due(), _pause(batch_id)]
    overlapping(store, *(sides if raise_first else reversed(sides)))
    assert _count(store, chunks, chunks.c.state == ChunkState.HELD, chunks.c.priority == 1_000) == 1


@pytest.mark.parametrize("pause_first", [True, False])
def test_a_pause_and_a_cancel_at_once_end_the_batch_and_leave_nothing_waiting(store: Store, pause_first: bool) -> None:
    batch_id = store.planned()
    sides: list[Verb] = [_pause(batch_id), lambda side: side.batches.cancel(TEAM, batch_id)]
    overlapping(store, *(sides if pause_first else reversed(sides)))
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["status"], batch["paused"]) == ("cancelling", None)
    assert _count(store, chunks, chunks.c.state == ChunkState.DROPPED) == 1


def test_a_commit_and_a_cancel_at_once_end_the_batch_once_with_the_rows_counted(store: Store) -> None:
    batch_id = store.planned()
    lease = _lease(store)
    overlapping(
        store,
        lambda one: one.chunks.commit(lease, [part(rows=4)]),
        lambda two: two.batches.cancel(TEAM, batch_id),
        behind="INSERT INTO parts",
    )
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["status"], batch["rows_done"]) == ("cancelling", 4)
    assert _count(store, duties, duties.c.kind == DutyKind.ASSEMBLE) == 1


@pytest.mark.parametrize("expiring_first", [True, False])
def test_a_batch_that_expires_while_its_last_chunk_is_committed_ends_once(store: Store, expiring_first: bool) -> None:
    batch_id = store.planned(window_seconds=5)
    lease = _lease(store)
    store.now += 6
    sides: list[Verb] = [lambda side: side.life.expire_due(), lambda side: side.chunks.commit(lease, [part(rows=4)])]
    outcome = overlapping(store, *(sides if expiring_first else reversed(sides)))
    assert outcome == (None, None)
    batch = store.batches.get(TEAM, batch_id)
    assert (batch["status"], batch["rows_done"], batch["expiring"]) == ("finalizing", 4, expiring_first)
    assert _count(store, duties, duties.c.kind == DutyKind.ASSEMBLE) == 1


def test_a_plan_and_a_cancel_at_once_do_not_wait_for_each_other(store: Store) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    chunk = PlannedChunk(number=0, rows=1, tokens=1, storage_key="k", bytes=1, sha256="s")
    plan = Plan(storage_key="p", rows_total=1, rows_done=0, rows_failed=0, chunks=[chunk])
    planned, _ = overlapping(
        store,
        lambda one: one.life.activate(duty, plan),
        lambda two: two.batches.cancel(TEAM, batch_id),
        behind="UPDATE duties",
    )
    assert planned is None
    assert _count(store, chunks, chunks.c.state == ChunkState.DROPPED) == 1


def test_a_plan_that_comes_with_its_cancel_changes_nothing(store: Store) -> None:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    plan = Plan(storage_key="p", rows_total=1, rows_done=0, rows_failed=0, chunks=[])
    _, planned = overlapping(
        store, lambda one: one.batches.cancel(TEAM, batch_id), lambda two: two.life.activate(duty, plan)
    )
    assert isinstance(planned, DutyLostError)
    assert store.status(batch_id) == "cancelled"


def test_two_engines_that_differ_are_not_both_accepted_if_they_come_at_once(store: Store) -> None:
    first, second = overlapping(
        store, lambda one: one.worker("a", identity="1"), lambda two: two.worker("b", identity="2")
    )
    assert isinstance(first, str)
    assert isinstance(second, ConflictError)


def test_a_duty_that_is_just_claimed_is_nobody_elses(store: Store) -> None:
    store.submit()

    def claim(side: Store) -> Any:
        return side.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)

    first, second = overlapping(store, claim, claim)
    assert first is not None
    assert second is None


def test_a_duty_that_comes_to_its_end_twice_at_once_ends_once(store: Store) -> None:
    store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=LEASE)
    assert duty is not None
    first, second = overlapping(store, lambda one: one.duties.end(duty), lambda two: two.duties.end(duty))
    assert first is None
    assert isinstance(second, DutyLostError)


def _file(store: Store) -> str:
    return Files(store.database).add(TEAM, StoredFile("f", "batch", "name", 1, "s", "k", 0.0, None)).id


def test_a_file_that_a_submit_has_just_taken_is_not_deleted(store: Store) -> None:
    file_id = _file(store)
    submitted, deleted = overlapping(
        store,
        lambda one: one.submit(dataset=None, input_file_id=file_id),
        lambda two: Files(two.database).delete(TEAM, file_id),
    )
    assert isinstance(deleted, ConflictError)
    assert store.status(submitted) == "validating"


def test_a_submit_does_not_get_a_file_that_is_just_deleted(store: Store) -> None:
    file_id = _file(store)
    _, submitted = overlapping(
        store,
        lambda one: Files(one.database).delete(TEAM, file_id),
        lambda two: two.submit(dataset=None, input_file_id=file_id),
    )
    assert isinstance(submitted, NotFoundError)
    assert _count(store, batches) == 0


def _indexed(store: Store) -> tuple[str, Any]:
    """A batch whose results are in an index file that is to be merged with another one."""
    batch_id, other = (_ended(store, key=key) for key in "ab")
    index = IndexFiles(store.database)
    for number, batch in enumerate((batch_id, other)):
        index.add(TEAM, f"index/{number}", batch_id=batch, rows=1, size=1, seconds=100)
    return batch_id, index.to_merge(TEAM, 2)


@pytest.mark.parametrize("merge_first", [True, False])
def test_a_merge_does_not_bring_back_the_results_of_a_batch_that_is_just_deleted(
    store: Store, merge_first: bool
) -> None:
    batch_id, files = _indexed(store)
    sides: list[Verb] = [
        lambda side: IndexFiles(side.database).replace(files, "index/new", rows=2, size=2),
        lambda side: side.batches.delete(TEAM, batch_id),
    ]
    outcome = overlapping(store, *(sides if merge_first else reversed(sides)))
    assert set(outcome) == {True, None}
    assert _count(store, index_batches, index_batches.c.batch_id == batch_id) == 0
    assert _count(store, index_batches) == 1


def test_two_merges_at_once_of_the_same_files_leave_one_file(store: Store) -> None:
    _, files = _indexed(store)
    outcome = overlapping(
        store,
        lambda one: IndexFiles(one.database).replace(files, "index/one", rows=2, size=2),
        lambda two: IndexFiles(two.database).replace(files, "index/two", rows=2, size=2),
    )
    assert outcome == (True, False)
    assert [file.storage_key for file in IndexFiles(store.database).living(TEAM)[0]] == ["index/one"]


def test_an_index_file_without_results_is_dropped_by_one_of_two(store: Store) -> None:
    batch_id, _ = _indexed(store)
    store.batches.delete(TEAM, batch_id)
    drop: Verb = lambda side: IndexFiles(side.database).drop_empty(TEAM)  # noqa: E731
    assert overlapping(store, drop, drop) == (["index/0"], [])


def test_two_processes_that_need_a_teams_secret_at_once_get_the_same(store: Store) -> None:
    get: Verb = lambda side: TeamSecrets(side.database).get(TEAM)  # noqa: E731
    first, second = overlapping(store, get, get)
    assert first == second


def test_who_reads_on_while_parts_are_committed_meets_each_once(store: Store) -> None:
    """The part that is noted first is committed last, as far as the store lets it."""
    batch_id = store.planned(chunks=2)
    leases = [_lease(store, "a"), _lease(store, "b")]
    read: list[str] = []

    def read_on() -> None:
        read.extend(store.chunks.part_keys(batch_id, offset=len(read), limit=10))

    def second(side: Store) -> None:
        side.chunks.extend(leases[1], [part(sha256="b")], lease_seconds=LEASE)
        read_on()

    overlapping(store, lambda one: one.chunks.extend(leases[0], [part(sha256="a")], lease_seconds=LEASE), second)
    read_on()
    assert read == ["part-0-a", "part-0-b"]
    with store.database.reading() as connection:
        assert list(connection.scalars(select(parts.c.place).order_by(parts.c.place))) == [1, 2]


def test_a_change_that_is_committed_late_is_a_new_version(store: Store) -> None:
    late, early = store.planned(key="late"), store.planned(key="early")
    leases = {str(chunk["batch_id"]): ChunkLease(chunk["id"], 1) for chunk in _claimed(store, 2)}
    changes = BatchChanges(store.database)
    seen = changes.versions([late, early])

    def meanwhile(side: Store) -> Any:
        side.chunks.extend(leases[early], [part()], lease_seconds=LEASE)
        return BatchChanges(side.database).versions([late, early])

    _, between = overlapping(
        store, lambda one: one.chunks.extend(leases[late], [part()], lease_seconds=LEASE), meanwhile
    )
    assert (between[late] == seen[late], between[early] == seen[early]) == (True, False)
    assert changes.versions([late])[late] != seen[late]


def _claimed(store: Store, count: int) -> Iterator[Any]:
    for number in range(count):
        yield store.chunks.claim(store.worker(f"w{number}"), lease_seconds=LEASE)


def test_a_value_that_has_no_room_is_refused_and_nothing_is_stored(store: Store) -> None:
    with pytest.raises(InvalidRequestError, match="Nothing was written"):
        store.submit(key="k" * 600)
    assert _count(store, batches) == 0


def test_a_transaction_that_was_broken_off_for_another_is_tried_again(postgres_server: Postgres) -> None:
    """Two that take the same locks in two orders: the database ends one of them, and both get there."""
    url = postgres_server.migrated()
    both = threading.Barrier(2)
    tries: list[str] = []
    failures: list[BatchLLMError] = []

    def lock_both(first: str, second: str) -> None:
        database = Database(url)

        @tried_again
        def verb() -> None:
            tries.append(first)
            with database.writing() as connection:
                database.lock_name(connection, first)
                if len(tries) <= 2:
                    both.wait(10)
                try:
                    database.lock_name(connection, second)
                except Exception as error:
                    failures.append(error)  # type: ignore[arg-type]
                    raise

        verb()
        database.close()

    threads = [threading.Thread(target=lock_both, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(failures) == 1
    assert sorted(tries) in (["a", "a", "b"], ["a", "b", "b"])


def test_one_that_is_broken_off_again_and_again_says_so(store: Store) -> None:
    tries = []

    @tried_again
    def verb() -> None:
        tries.append(1)
        raise StoreConflictError("The store cannot be used: deadlock detected.")

    with pytest.raises(StoreConflictError, match="deadlock detected"):
        verb()
    assert len(tries) == 5


def test_a_batch_that_was_deleted_since_somebody_looked_does_not_stop_the_others(store: Store) -> None:
    first, second = store.planned(key="a"), store.planned(key="b")
    for batch_id in (first, second):
        store.batches.cancel(TEAM, batch_id)
    leased = _count(store, duties, duties.c.kind == DutyKind.ASSEMBLE)
    assert leased == 2
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=LEASE)
    assert duty is not None

    def finish_and_delete(side: Store) -> None:
        side.life.finish(duty, "cancelled")
        side.batches.delete(TEAM, duty.batch_id)

    outcome = overlapping(
        store, lambda one: one.life.settle_ending(), finish_and_delete, behind="SELECT batches.id", waits=False
    )
    assert outcome == (None, None)
