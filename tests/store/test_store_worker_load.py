"""What is told of workers: who is there, what they hold and do, and what of a team's waits for them."""

from __future__ import annotations

from sqlalchemy import update

from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.page_wire import QueueLine, WorkerLine, WorkerList
from airflow_batch_llm.service.worker_lines import worker_list
from airflow_batch_llm.store.pauses import Pauses
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tables import chunks
from airflow_batch_llm.store.worker_load import LISTED_SECONDS, WorkerLoad
from airflow_batch_llm.store.workers import ALIVE_SECONDS
from airflow_batch_llm.worker_wire import Registration, ServedModel
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, LEASE, POOL, TEAM, Store, part, store

__all__ = ["store"]
pytestmark = BOTH_STORES


def seen(store: Store, team: str = TEAM) -> WorkerList:
    return worker_list(WorkerLoad(store.database).look(team))


def line(store: Store, name: str = "w") -> WorkerLine:
    return next(worker for worker in seen(store).workers if worker.name == name)


def team_worker(store: Store, team: str, name: str) -> str:
    models = [ServedModel(model="m", endpoint=CHAT), ServedModel(model="m", endpoint="/tokenize")]
    return store.workers.register(Pool(team), Registration(name=name, version="2", models=models))


def test_a_worker_is_idle_then_works_falls_silent_and_leaves(store: Store) -> None:
    worker = store.worker()
    states = [line(store).state]
    store.planned(rows=4)
    lease = store.claim(worker)
    assert lease is not None
    states.append(line(store).state)
    store.now += ALIVE_SECONDS + 1
    states.append(line(store).state)
    store.workers.saw(POOL, worker, gone=True)
    states.append(line(store).state)
    assert states == ["idle", "working", "silent", "gone"]
    store.now += LISTED_SECONDS + 1
    assert seen(store).workers == []


def test_a_worker_is_told_with_what_it_holds_and_what_it_did_in_the_last_minute(store: Store) -> None:
    store.planned(rows=60, chunks=2)
    other, worker = store.worker("other"), store.worker()
    first, second = store.claim(worker), store.claim(worker)
    assert first is not None
    assert second is not None
    store.chunks.extend(first, [part(rows=30)], lease_seconds=LEASE)
    shown = line(store)
    assert (shown.chunks, shown.rows_in_flight, shown.models, shown.endpoints) == (2, 90, ["m"], [CHAT])
    assert (shown.rows_per_second, shown.tokens_per_second) == (0.5, round(7 / 60, 2))
    assert (line(store, "other").rows_per_second, line(store, "other").chunks) == (0.0, 0)
    store.now += LEASE + 1
    assert (line(store).chunks, line(store).rows_in_flight) == (0, 0)
    # another one has both, and the rows that were done stay this one's
    assert store.claim(other)
    assert store.claim(other)
    assert (line(store).chunks, line(store).rows_per_second) == (0, 0.5)
    assert (line(store, "other").rows_in_flight, line(store, "other").rows_per_second) == (90, 0.0)
    store.now += 60
    assert line(store).rows_per_second == 0.0


def test_a_team_is_told_of_its_own_workers_and_of_the_shared_ones(store: Store) -> None:
    """And of what those hold for others the numbers alone."""
    shared = store.worker("shared")
    team_worker(store, "red", "reds")
    team_worker(store, TEAM, "own")
    told = {team: {(worker.name, worker.shared) for worker in seen(store, team).workers} for team in (TEAM, "red")}
    assert told == {TEAM: {("shared", True), ("own", False)}, "red": {("shared", True), ("reds", False)}}
    store.planned()
    assert store.claim(shared)
    assert {worker.name: worker.chunks for worker in seen(store, "red").workers} == {"shared": 1, "reds": 0}
    assert seen(store, "red").queue == []
    assert line(store, "own").endpoints == [CHAT]


def test_the_queue_has_what_waits_by_model_and_what_is_in_work(store: Store) -> None:
    store.planned(chunks=3, rows=4)
    begun = store.now
    store.now += 100
    held = store.planned(chunks=1, rows=4)
    Pauses(store.database).pause(TEAM, held, PauseReason.REQUESTED)
    store.planned(chunks=1, rows=4)
    with store.database.writing() as connection:
        connection.execute(update(chunks).values(tokens=40))
    worker, _ = store.worker(), store.worker("second")
    lease = store.claim(worker)
    assert lease is not None
    store.chunks.extend(lease, [part(rows=1)], lease_seconds=LEASE)
    assert seen(store).queue == [
        QueueLine(
            model="m", endpoint=CHAT, batches=2, chunks_pending=3, chunks_leased=1, rows_left=15, tokens_left=150,
            workers=2, oldest_at=begun,
        )
    ]  # fmt: skip


def test_a_queue_without_a_worker_says_so(store: Store) -> None:
    store.planned()
    worker = store.worker()
    store.workers.saw(POOL, worker, gone=True)
    [line] = seen(store).queue
    assert (line.workers, line.chunks_pending, line.oldest_at) == (0, 1, store.now)
