"""The pages with many batches: how soon they are there, what they ask for, what a look at rows reads.

    python benchmarks/page.py                       # 5,000 batches, one of them with 1,000,000 rows
    python benchmarks/page.py --airflow             # the same inside a real Airflow

The service is `batch-llm serve` on SQLite, the browser is Chromium, both on this machine. The batches are written into
the service's store as they stand after their end, a hundred of them as running ones. The large one has a real target
of `--rows` rows in Parquet, as the service writes it. What a call reads is what the kernel counts for the service's
processes (`rchar` of /proc/<pid>/io: files and sockets, cached or not).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from deferred_triggers import running_service, store_of
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from sqlalchemy import insert

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import DatasetSpec, Message

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "dags_examples" / "demo")]

from airflow_processes import AirflowProcesses  # noqa: E402

from tests.pages.chromium import ARGUMENTS, chromium  # noqa: E402

LABELS = ("price", "quality", "delivery", "other")
STATUSES = ("completed",) * 7 + ("failed", "cancelled", "expired")
RUNNING = 100
GROUP = 16_384
"""Rows of a row group, as the service writes them."""
VISITS = 5


def spec(target: str) -> dict[str, Any]:
    messages = [Message(role="user", content="What is this review about?\n\n{text}")]
    made = DatasetSpec(source="reviews.parquet", target=target, messages=messages, choices=list(LABELS))
    return made.model_dump(mode="json")


def written_target(path: Path, rows: int) -> None:
    """A target with as many rows, each of about 400 bytes of text."""
    with pq.ParquetWriter(path, _schema(), compression="zstd") as writer:
        for start in range(0, rows, GROUP):
            numbers = range(start, min(start + GROUP, rows))
            texts = [f"Review {n}: {hashlib.shake_128(str(n).encode()).hexdigest(190)}" for n in numbers]
            bad = [n % 1000 == 7 for n in numbers]
            columns = {
                "id": list(numbers),
                "text": texts,
                "llm_output": [None if wrong else LABELS[n % 4] for n, wrong in zip(numbers, bad, strict=True)],
                "llm_confidence": [None if wrong else 0.9 for wrong in bad],
                "llm_status": ["invalid_output" if wrong else "success" for wrong in bad],
                "llm_error": ["not_a_choice: The answer is none of the choices." if wrong else None for wrong in bad],
                "llm_finish_reason": ["stop"] * len(texts),
                "llm_prompt_tokens": [120] * len(texts),
                "llm_completion_tokens": [2] * len(texts),
            }
            writer.write_table(pa.table(columns, schema=_schema()), row_group_size=GROUP)


def _schema() -> pa.Schema:
    return pa.schema(
        [
            *(("id", pa.int64()), ("text", pa.string()), ("llm_output", pa.string()), ("llm_confidence", pa.float64())),
            *((name, pa.string()) for name in ("llm_status", "llm_error", "llm_finish_reason")),
            *((name, pa.int64()) for name in ("llm_prompt_tokens", "llm_completion_tokens")),
        ]
    )


def filled(store: Database, count: int, large: dict[str, Any]) -> None:
    """As many batches of forty Dags, and the large one, which is the newest."""
    now = time.time()
    common = {"team": "default", "generation": 1, "content_sha256": "c" * 64, "endpoint": "/v1/chat/completions"}
    made = []
    for number in range(count - 1):
        status = "in_progress" if number < RUNNING else STATUSES[number % len(STATUSES)]
        at, rows, name = now - 60 - 600 * number, 1_000 + number % 7 * 500, f"batch_{uuid.uuid4().hex}"
        ended = {} if status == "in_progress" else {f"{status}_at": at + 300}
        made.append(
            {
                **common,
                "completed_at": None,
                "failed_at": None,
                "cancelled_at": None,
                "expired_at": None,
                **ended,
                "id": name,
                "key": name,
                "model": f"model-{number % 5}",
                "status": status,
                "created_at": at,
                "deployment": "bench",
                "dag_id": f"dag_{number % 40:02}",
                "task_id": "classify",
                "map_index": -1,
                "run_id": f"scheduled__{number:05}",
                "dataset": spec(f"labels/{number}.parquet"),
                "in_progress_at": at + 1,
                "rows_total": rows,
                "rows_done": rows if ended else rows // 3,
                "rows_failed": number % 11,
                "prompt_tokens": 120 * rows,
                "completion_tokens": 2 * rows,
                "gpu_seconds": rows / 100,
                "chunks_total": 1,
                "chunks_done": int(bool(ended)),
                "manifest": None,
            }
        )
    made.append({**made[-1], **common, **large})
    with store.writing() as connection:
        for start in range(0, len(made), 500):
            connection.execute(insert(batches), made[start : start + 500])


def large_batch(target: Path, rows: int) -> dict[str, Any]:
    name = f"batch_{uuid.uuid4().hex}"
    now = time.time()
    file = {"uri": str(target), "rows": rows, "bytes": target.stat().st_size, "sha256": "0" * 64}
    failed = len(range(7, rows, 1000))
    manifest = {
        "batch_id": name,
        "generation": 1,
        "status": "completed",
        "model": "model-0",
        "files": [file],
        "rows": rows,
        "counts": {"success": rows - failed, "invalid_output": failed},
        "failures": {"not_a_choice": failed},
        "source": "reviews.parquet",
        "format": "parquet",
        "prompt_tokens": 120 * rows,
        "completion_tokens": 2 * rows,
        "gpu_seconds": 3_600.0,
        "created_at": int(now - 900),
        "finished_at": int(now - 30),
    }
    target.with_name(f"{target.name}.manifest.json").write_text(json.dumps(manifest))
    return {
        "id": name,
        "key": name,
        "status": "completed",
        "created_at": now - 30,
        "completed_at": now - 1,
        "dag_id": "dag_00",
        "run_id": "large",
        "dataset": spec(str(target)),
        "manifest": manifest,
        "rows_total": rows,
        "rows_done": rows,
        "rows_failed": failed,
        "prompt_tokens": 120 * rows,
        "completion_tokens": 2 * rows,
        "gpu_seconds": 3_600.0,
        "chunks_total": 500,
        "chunks_done": 500,
    }


@dataclass
class Visit:
    """What one visit of a page took: milliseconds since the navigation, and what went over the wire."""

    painted: float
    ready: float
    requests: int
    wire_bytes: int
    ours: int
    our_bytes: int


@dataclass
class Wire:
    """Counts what a page asks for, by Chromium's own protocol; ``own`` marks the addresses that are ours."""

    own: str
    requests: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def listen(self, context: BrowserContext, page: Page) -> None:
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.on(
            "Network.requestWillBeSent", lambda sent: self.requests.update({sent["requestId"]: sent["request"]["url"]})
        )
        session.on(
            "Network.loadingFinished", lambda done: self.sizes.update({done["requestId"]: done["encodedDataLength"]})
        )

    def visit(self, painted: float, ready: float) -> Visit:
        ours = {name for name, url in self.requests.items() if self.own in url}
        return Visit(
            *(painted, ready, len(self.requests), sum(self.sizes.values()), len(ours)),
            sum(size for name, size in self.sizes.items() if name in ours),
        )


READY = """selector => new Promise(resolve => {
  const look = () => document.querySelector(selector) ? resolve(performance.now()) : requestAnimationFrame(look);
  look();
})"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def visited(context: BrowserContext, url: str, selector: str, own: str) -> Visit:
    """Opens a page and waits until what ``selector`` names is there, which is when it can be used."""
    page = context.new_page()
    wire = Wire(own)
    wire.listen(context, page)
    page.goto(url, wait_until="commit")
    ready = page.evaluate(READY, selector)
    painted = page.evaluate(PAINTED)
    made = wire.visit(painted, ready)
    page.close()
    return made


def told(name: str, visits: list[Visit]) -> None:
    middle = lambda key: statistics.median(getattr(visit, key) for visit in visits)  # noqa: E731
    print(
        f"  {name:34} first paint {middle('painted'):6.0f} ms, usable {middle('ready'):6.0f} ms, "
        f"{middle('requests'):4.0f} requests, {middle('wire_bytes') / 1024:7.0f} KiB; "
        f"of these ours {middle('ours'):3.0f} requests, {middle('our_bytes') / 1024:5.0f} KiB"
    )


def first_and_again(
    browser: Browser, name: str, cookies: list[dict[str, Any]], url: str, selector: str, own: str
) -> None:
    first, again = [], []
    for _ in range(VISITS):
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.add_cookies(cookies)  # type: ignore[arg-type]
        first.append(visited(context, url, selector, own))
        again.append(visited(context, url, selector, own))
        context.close()
    told(f"{name}, first visit", first)
    told(f"{name}, again", again)


def read_by(pid: int) -> int:
    """Bytes that a process and those below it have read so far."""
    root = psutil.Process(pid)
    return sum(process.io_counters().read_chars for process in [root, *root.children(recursive=True)])


def measured_calls(url: str, token: str, pid: int, batch_id: str, target: Path) -> None:
    size, middle = target.stat().st_size, f"line-{pq.ParquetFile(target).metadata.num_rows // 2}.0"
    print(f"Calls (the target of the large batch has {size:,} bytes):")
    calls: dict[str, tuple[str, str, dict[str, Any]]] = {
        "list, newest 50": ("POST", "overview", {"json": {"limit": 50}}),
        "list, page 50": ("POST", "overview", {"json": {"limit": 50, "offset": 2450}}),
        "list, search": ("POST", "overview", {"json": {"search": "dag_07"}}),
        "list, one Dag and status": ("POST", "overview", {"json": {"dag_ids": ["dag_07"], "status": ["failed"]}}),
        "report": ("GET", f"{batch_id}/report", {}),
        "rows, first 10": ("GET", f"{batch_id}/rows", {"params": {"limit": 10}}),
        "rows, 10 in the middle": ("GET", f"{batch_id}/rows", {"params": {"limit": 10, "after": middle}}),
    }
    with httpx.Client(
        base_url=f"{url}/v1/batches/", headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as client:
        for name, (method, path, request) in calls.items():
            times, reads, length = [], [], 0
            for _ in range(VISITS):
                before, started = read_by(pid), time.perf_counter()
                response = client.request(method, path, **request).raise_for_status()
                times.append(time.perf_counter() - started)
                reads.append(read_by(pid) - before)
                length = len(response.content)
            read = statistics.median(reads)
            print(
                f"  {name:26} {1000 * statistics.median(times):6.0f} ms, answer {length / 1024:6.1f} KiB, "
                f"read {read / 1024:8.0f} KiB ({read / size:.2%} of the target)"
            )


@contextmanager
def running_airflow(folder: Path, url: str, token: str) -> Iterator[AirflowProcesses]:
    connection = {"conn_type": "batch_llm", "host": url, "password": token, "extra": {"deployment": "bench"}}
    environment = {"AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection), "PYTHONPATH": str(ROOT)}
    (folder / "dags").mkdir()
    with AirflowProcesses(folder / "airflow", dags=folder / "dags", environment=environment) as airflow:
        yield airflow


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--batches", type=int, default=5_000)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--airflow", action="store_true", help="inside a real Airflow as well")
    options = asked.parse_args()
    browser_path = chromium()
    if browser_path is None:
        sys.exit("No Chromium was found: install one, or name it in CHROMIUM.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pid, port, token = stack.enter_context(running_service(folder))
        url = f"http://127.0.0.1:{port}"
        target = folder / "data" / "large.parquet"
        written_target(target, options.rows)
        large = large_batch(target, options.rows)
        filled(store_of(folder), options.batches, large)
        measured_calls(url, token, pid, large["id"], target)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=browser_path, args=list(ARGUMENTS)
        )
        stack.callback(browser.close)
        print(f"Pages, median of {VISITS} visits:")
        login = httpx.post(
            f"{url}/ui/login", json={"token": token}, headers={"X-Batch-LLM-Page": "1", "Origin": url}
        ).raise_for_status()
        cookies = [{"name": name, "value": value, "url": f"{url}/ui"} for name, value in login.cookies.items()]
        rows, row = "tr[data-batch]", "[data-row]"
        first_and_again(browser, "list of batches", cookies, f"{url}/ui/", rows, "/ui/")
        first_and_again(
            browser, "rows of the large batch", cookies, f"{url}/ui/?batch={large['id']}&tab=rows", row, "/ui/"
        )
        if options.airflow:
            airflow = stack.enter_context(running_airflow(folder, url, token))
            given = httpx.get(f"{airflow.url}/auth/token", timeout=60).json()["access_token"]
            user = [{"name": "_token", "value": given, "url": airflow.url}]
            first_and_again(browser, "list in Airflow", user, f"{airflow.url}/plugin/llm-batches", rows, "/batch-llm/")


if __name__ == "__main__":
    main()
