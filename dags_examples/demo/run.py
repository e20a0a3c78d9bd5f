"""`make demo`: one Dag through a real Airflow and a pool with real vLLM, on this machine, and what came out of it.

Leaves nothing running. State, logs and the target stay below `.demo` until the next run.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from airflow_processes import AirflowProcesses
from pool import ROOT, SECTION_MODEL, SECTION_MODEL_NAME, Pool, running_pool, wait_for_worker
from rich.console import Console
from rich.table import Table
from section_groups import GROUP_OF

DEMO: Final = ROOT / ".demo"
DAGS: Final = ROOT / "dags_examples"
DAG_ID: Final = "classify_packages"
TASK_SECONDS: Final = 240.0
SHOWN: Final = 6

console: Final = Console(width=110, highlight=False)


def main() -> None:
    begun = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    (DEMO / "data").mkdir(parents=True)
    shutil.copy(DAGS / "data" / "packages.parquet", DEMO / "data")
    with ExitStack() as stack:
        say(begun, "starting the pool: service, worker and `vllm serve` on a very small trained model")
        pool = stack.enter_context(running_pool(DEMO, model=SECTION_MODEL, name=SECTION_MODEL_NAME))
        say(begun, "starting Airflow: api-server, scheduler, dag-processor and triggerer")
        airflow = stack.enter_context(
            AirflowProcesses(DEMO / "airflow", dags=DAGS, environment={"AIRFLOW_CONN_BATCH_LLM_DEFAULT": uri(pool)})
        )
        wait_for_worker(pool)
        say(begun, f"both are up; triggering the Dag {DAG_ID}")
        run_id = run_dag(airflow, begun)
        manifest = airflow.xcom(DAG_ID, run_id, "classify")
        log = airflow.task_log(DAG_ID, run_id, "classify")
    console.print("\nFrom the log of task classify:")
    for line in log.splitlines():
        if line.startswith("Batch ") or "DEFERRED" in line:
            console.print(f"    {line}", markup=False, soft_wrap=True)
    show(manifest)
    say(begun, "done; everything that was started has ended")


def uri(pool: Pool) -> str:
    """The Airflow connection as JSON, which is what a deployment would put into its secrets."""
    host, _, port = pool.url.rpartition(":")
    connection = {"conn_type": "batch_llm", "host": host, "port": int(port), "password": pool.token}
    return json.dumps(connection)


def run_dag(airflow: AirflowProcesses, begun: float) -> str:
    """Follows one run of the Dag to its success, saying each state of its first task, and gives the run's id."""
    run_id = airflow.trigger(DAG_ID, conf={})
    seen: list[str] = []
    deadline = time.monotonic() + TASK_SECONDS
    while time.monotonic() < deadline:
        states = airflow.task_states(DAG_ID, run_id)
        if states.get("classify") and states["classify"] not in seen[-1:]:
            seen.append(states["classify"])
            say(begun, f"task classify is {seen[-1]}")
        state = airflow.run_state(DAG_ID, run_id)
        if state in ("success", "failed"):
            break
        time.sleep(0.5)
    if state != "success":
        sys.exit(f"The Dag run ended as {state}: {states}. The logs are below {DEMO}.")
    return run_id


def show(manifest: dict[str, Any]) -> None:
    target = Path(manifest["files"][0]["uri"])
    rows_in = pq.ParquetFile(DEMO / "data" / "packages.parquet").metadata.num_rows
    result = pq.read_table(target)
    table = Table("package", "summary", "kind (true)", "llm_output", "llm_status", title=str(target))
    rows = [{**row, "kind": GROUP_OF[row["section"]]} for row in result.to_pylist()]
    for row in rows[:: max(len(rows) // SHOWN, 1)][:SHOWN]:
        table.add_row(*(str(row[name])[:28] for name in ("package", "summary", "kind", "llm_output", "llm_status")))
    console.print(table)
    seconds = max(manifest["finished_at"] - manifest["created_at"], 1)
    console.print(
        f"rows: {rows_in:,} in, {result.num_rows:,} out   statuses: {manifest['counts']}\n"
        f"{manifest['rows'] / seconds:,.0f} rows/s from submit to target, {manifest['prompt_tokens']:,} prompt tokens, "
        f"{manifest['completion_tokens']:,} answer tokens, {manifest['gpu_seconds']:.1f} s of the engine\n\n"
        f"{accuracy(rows)}\n\n"
        "With a real model, on a machine with a GPU:\n\n"
        "    batch-llm up --model Qwen/Qwen3-8B --vllm /path/to/vllm --data-root /data\n\n"
        "and an Airflow connection `batch_llm_default` of type Batch LLM with that address and ~/.batch-llm/token.\n"
    )
    if not rows_in == result.num_rows == manifest["rows"]:
        sys.exit("Rows in and rows out differ.")


def accuracy(rows: Sequence[dict[str, Any]]) -> str:
    """How many labels are true, beside what the same answer for every package would get."""
    right = sum(row["llm_output"] == row["kind"] for row in rows)
    commonest, count = Counter(row["kind"] for row in rows).most_common(1)[0]
    return (
        f"{right:,} of {len(rows):,} labels are true ({right / len(rows):.1%}); the model saw none of these packages.\n"
        f'Always saying "{commonest}", the commonest kind, would be right for {count / len(rows):.1%}.'
    )


def say(begun: float, what: str) -> None:
    console.print(f"[{time.monotonic() - begun:5.1f} s] {what}", markup=False)


if __name__ == "__main__":
    main()
