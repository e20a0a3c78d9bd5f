"""What a claim costs where many chunks wait, and which of them comes first for a worker that serves several models."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, text, update

from airflow_batch_llm.models import ChunkState
from airflow_batch_llm.store.claimable import FIRST_WAITING, FRONTS, ClaimableChunks
from airflow_batch_llm.store.tables import chunks
from airflow_batch_llm.worker_wire import Registration, ServedModel
from tests.postgres import BOTH_STORES
from tests.store.test_store_chunks import CHAT, LEASE, POOL, TEAM, Store, store

__all__ = ["store"]
pytestmark = BOTH_STORES
OTHER = "/v1/completions"


def _worker(store: Store, *endpoints: str, name: str = "w") -> str:
    models = [ServedModel(model="m", endpoint=endpoint) for endpoint in endpoints]
    return store.workers.register(POOL, Registration(name=name, version="1", models=models))


def test_a_worker_of_several_endpoints_takes_what_is_most_urgent_of_all(store: Store) -> None:
    names = [
        store.planned(endpoint=endpoint, priority=priority)
        for endpoint, priority in ((CHAT, 0), (OTHER, 5), (CHAT, 5), (OTHER, 0), (CHAT, 9))
    ]
    worker = _worker(store, OTHER, CHAT, "/v1/embeddings")
    claimed = [store.chunks.claim(worker, lease_seconds=LEASE) for _ in range(5)]
    assert [names.index(chunk["batch_id"]) for chunk in claimed if chunk] == [4, 1, 2, 3, 0]  # equals alternate
    assert store.chunks.claim(worker, lease_seconds=LEASE) is None


def test_a_lease_that_ran_out_comes_first_wherever_it_is_and_only_for_who_serves_it(store: Store) -> None:
    store.planned(endpoint=OTHER)
    expired = store.chunks.claim(_worker(store, OTHER), lease_seconds=LEASE)
    assert expired is not None
    store.planned(endpoint=CHAT, priority=9)
    store.now += LEASE + 1
    other, both = _worker(store, CHAT, name="chat"), _worker(store, CHAT, OTHER, name="both")
    again = store.chunks.claim(both, lease_seconds=LEASE)
    assert again is not None
    assert (again["id"], again["attempt"]) == (expired["id"], 2)
    store.now += LEASE + 1
    chat = store.chunks.claim(other, lease_seconds=LEASE)
    assert chat is not None
    assert chat["endpoint"] == CHAT


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_claim_reads_the_index_and_sorts_no_waiting_chunks(store: Store, analyzed: bool) -> None:
    """Also before the database knows how many there are."""
    ids = [store.planned(key=f"k{number}") for number in range(3)]
    with store.database.writing() as connection:
        row = {"team": TEAM, "model": "m", "endpoint": CHAT, "rows": 1, "tokens": 1, "storage_key": "k", "bytes": 1}
        row |= {"sha256": "s", "state": ChunkState.PENDING}
        many = [row | {"batch_id": ids[n % 3], "number": n + 1, "priority": n % 2} for n in range(4_000)]
        connection.execute(insert(chunks), many)
        done = update(chunks).where(chunks.c.number % 2 == 0).values(state=ChunkState.DONE)
        connection.execute(done)
        if analyzed:
            connection.execute(text("ANALYZE"))
    waiting = _plan(store, FIRST_WAITING.params(model="m", endpoint=CHAT, team=TEAM))
    assert "ix_chunks_claim" in waiting
    assert "sort" not in waiting.replace("-sort", "").lower()
    assert "TEMP B-TREE" not in waiting
    fronts = _plan(store, FRONTS.params(worker_id=store.worker()))
    assert fronts.count("ix_chunks_claim") == 3  # the first team, the next one, and the first chunk of each
    assert not any(whole in fronts for whole in ("Seq Scan on chunks", "SCAN chunks", "TEMP B-TREE"))
    expired = _plan(store, ClaimableChunks(store.database.now()).expired.params(worker_id="w"))
    assert any(found in expired for found in ("Index Scan using ix_chunks_", "USING INDEX ix_chunks_"))


def _plan(store: Store, query: object) -> str:
    explain = "EXPLAIN" if store.url.startswith("postgres") else "EXPLAIN QUERY PLAN"
    with store.database.writing() as connection:
        compiled = query.compile(connection, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
        return "\n".join(str(line) for line in connection.exec_driver_sql(f"{explain} {compiled}"))
