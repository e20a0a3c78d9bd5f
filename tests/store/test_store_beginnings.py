"""An attempt counts against its chunk once it said that it began; rows that must be alone begin with nobody beside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select, update

from airflow_batch_llm.errors import LeaseLostError
from airflow_batch_llm.store.chunks import Begun, ChunkLease
from airflow_batch_llm.store.tables import attempts, chunks
from airflow_batch_llm.worker_wire import Registration, ServedModel
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, LEASE, POOL, TEAM, Store, part

pytestmark = BOTH_STORES
GOES_ON = Begun(stop=False, wait=False)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.database.close()


def barren(store: Store, lease: ChunkLease) -> int:
    with store.database.reading() as connection:
        return int(connection.scalar(select(chunks.c.barren).where(chunks.c.id == lease.chunk_id)) or 0)


def claimed(store: Store, worker_id: str) -> ChunkLease:
    lease = store.claim(worker_id)
    assert lease is not None
    return lease


def begin(store: Store, lease: ChunkLease) -> Begun:
    return store.chunks.begin(lease, lease_seconds=LEASE)


def asker(store: Store, name: str, server: str | None = "s") -> str:
    """A worker whose engine is a server that others ask too."""
    served = ServedModel(model="m", endpoint=CHAT)
    return store.workers.register(POOL, Registration(name=name, version="1", models=[served], server=server))


def must_be_alone(store: Store, number: int) -> None:
    with store.database.writing() as connection:
        connection.execute(update(chunks).where(chunks.c.number == number).values(alone=True))


def test_a_claim_counts_nothing_and_a_beginning_counts_once_however_often_it_is_said(store: Store) -> None:
    store.planned()
    worker = store.worker()
    for losses in range(3):
        lease = claimed(store, worker)
        assert barren(store, lease) == losses
        assert [begin(store, lease), begin(store, lease)] == [GOES_ON] * 2
        assert barren(store, lease) == losses + 1
        store.now += LEASE + 1
        claimed(store, worker)  # it is lost before it begins
        store.now += LEASE + 1


def test_a_beginning_prolongs_the_lease_and_is_noted_with_its_time(store: Store) -> None:
    store.planned()
    lease = claimed(store, store.worker())
    store.now += LEASE - 1
    begin(store, lease)
    store.now += LEASE - 1
    assert store.claim(store.worker("other")) is None
    with store.database.reading() as connection:
        assert connection.scalar(select(attempts.c.began_at)) == store.now - LEASE + 1


def test_who_lost_the_chunk_cannot_begin_it(store: Store) -> None:
    store.planned()
    stale = claimed(store, store.worker())
    store.now += LEASE + 1
    current = claimed(store, store.worker("other"))
    with pytest.raises(LeaseLostError):
        begin(store, stale)
    assert barren(store, current) == 0


def test_a_part_ends_the_count(store: Store) -> None:
    store.planned()
    lease = claimed(store, store.worker())
    begin(store, lease)
    store.chunks.extend(lease, [part(0, 1)], lease_seconds=LEASE)
    assert barren(store, lease) == 0


@pytest.mark.parametrize("alone", [False, True])
def test_whoever_gives_a_chunk_back_without_a_row_to_blame_did_not_end_without_a_word(
    store: Store, *, alone: bool
) -> None:
    store.planned()
    if alone:
        must_be_alone(store, 0)
    worker = store.worker()
    for _ in range(3):
        begin(store, claimed(store, worker))
        store.now += LEASE + 1
    lease = claimed(store, worker)
    begin(store, lease)
    assert barren(store, lease) == 4
    store.chunks.release(lease, [], outcome="engine_died", in_flight=[])
    assert barren(store, lease) == 0


def test_a_worker_is_told_that_the_batch_is_ending_before_its_first_row(store: Store) -> None:
    batch_id = store.planned()
    lease = claimed(store, store.worker())
    store.batches.cancel(TEAM, batch_id)
    assert begin(store, lease).stop


def test_at_one_server_a_row_that_must_be_alone_waits_for_what_has_begun_and_all_else_waits_for_it(
    store: Store,
) -> None:
    store.planned(chunks=2)
    must_be_alone(store, 1)
    first, second = asker(store, "first"), asker(store, "second")
    before, alone = claimed(store, first), claimed(store, second)
    assert begin(store, before).wait  # a chunk that must be alone is there, though nothing of it has begun
    assert begin(store, alone) == GOES_ON
    assert begin(store, before).wait
    store.chunks.release(alone, [], outcome="drained")
    assert begin(store, before) == GOES_ON
    again = claimed(store, second)
    assert again.chunk_id == alone.chunk_id
    assert begin(store, again).wait
    assert barren(store, again) == 0
    store.chunks.release(before, [], outcome="drained")
    assert begin(store, again) == GOES_ON


def test_of_two_chunks_that_must_be_alone_at_one_server_one_begins(store: Store) -> None:
    store.planned(chunks=2)
    for number in range(2):
        must_be_alone(store, number)
    one, other = (claimed(store, asker(store, name)) for name in ("one", "other"))
    assert [begin(store, one), begin(store, other)] == [GOES_ON, Begun(stop=False, wait=True)]


@pytest.mark.parametrize("servers", [("s", "t"), (None, None), ("s", None)])
def test_workers_with_engines_of_their_own_wait_for_nobody(
    store: Store, servers: tuple[str | None, str | None]
) -> None:
    store.planned(chunks=2)
    for number in range(2):
        must_be_alone(store, number)
    for name, server in zip(("one", "other"), servers, strict=True):
        assert begin(store, claimed(store, asker(store, name, server))) == GOES_ON


def test_a_lost_worker_is_waited_for_as_long_as_its_lease(store: Store) -> None:
    store.planned(chunks=2)
    for number in range(2):
        must_be_alone(store, number)
    lost, other = (claimed(store, asker(store, name)) for name in ("lost", "other"))
    begin(store, lost)
    store.now += LEASE - 1
    assert begin(store, other).wait
    store.now += 2
    assert begin(store, other) == GOES_ON
