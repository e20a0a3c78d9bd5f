"""One large request file through upload, check, run, assembly and download, with the peak memory of the service.

    python benchmarks/request_file.py --rows 1000000
    python benchmarks/request_file.py --rows 5000000 --check-only

The engine is the fake one of the tests, so that the rates are those of the service and the worker alone. Service,
worker and engine share the machine. Prints a Markdown table. Needs the environment of `make test-fast`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from memory import Memory

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.settings import TOKEN_FILE, TOKEN_VARIABLE
from airflow_batch_llm.wire import Batch, BatchCreate

sys.path.append(str(Path(__file__).resolve().parents[1] / "dags_examples" / "demo"))

from pool import ROOT, free_port

MODEL = "fake"
START_SECONDS = 60.0


@dataclass
class Steps:
    """What each step took, and the highest memory of each part while it went on."""

    rows: int
    lines: list[str] = field(default_factory=list)

    def took(self, step: str, seconds: float, memory: Memory) -> None:
        service = memory.peaks.get("service, all of it", 0) / 1e6
        self.lines.append(f"| {step} | {seconds:,.1f} | {self.rows / seconds:,.0f} | {service:,.0f} |")
        memory.peaks.clear()


def write_requests(path: Path, rows: int) -> None:
    with path.open("wb") as stream:
        for row in range(rows):
            text = f"Package {row} is a library of routines for the handling of things. Which section is it of?"
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_completion_tokens": 16}
            line = {"custom_id": f"row-{row}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            stream.write(orjson.dumps(line) + b"\n")


@contextlib.contextmanager
def process(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(60)


def until(check: Callable[[], Any], seconds: float = START_SECONDS, pause: float = 0.1) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, Exception):
            if answer := check():
                return answer
        time.sleep(pause)
    raise SystemExit(f"Not within {seconds:.0f} s.")


def left(client: BatchClient, batch_id: str, *statuses: str) -> Batch:
    """The batch once it has left these statuses."""
    return until(lambda: (batch := client.get(batch_id)).status not in statuses and batch, seconds=1e6, pause=0.5)


def download(client: BatchClient, file_id: str, rows: int) -> None:
    """Reads the output file and checks that each request has one line."""
    seen = bytearray(rows)
    for line in client.file_lines(file_id):
        seen[int(orjson.loads(line)["custom_id"].removeprefix("row-"))] += 1
    assert seen == b"\1" * rows, "some requests have no line, or more than one"


def run(folder: Path, rows: int, *, check_only: bool) -> Steps:
    steps, requests, home = Steps(rows), folder / "requests.jsonl", folder / "home"
    write_requests(requests, rows)
    engine_port, port = free_port(), free_port()
    serve = ["airflow_batch_llm", "serve", "--home", str(home), "--data-root", str(folder), "--port", str(port)]
    with contextlib.ExitStack() as parts:
        parts.enter_context(process(["tests.worker.fake_engine", "--port", str(engine_port)], folder / "engine.log"))
        service = parts.enter_context(process(serve, folder / "service.log"))
        token = until(lambda: (home / TOKEN_FILE).read_text().strip())
        client = parts.enter_context(BatchClient(f"http://127.0.0.1:{port}", token))
        until(client.models)
        memory = parts.enter_context(Memory(service.pid))
        begun = time.monotonic()
        file = client.upload(requests)
        steps.took(f"upload ({file.bytes / 1e6:,.0f} MB)", time.monotonic() - begun, memory)
        create = BatchCreate(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="7d")
        begun = time.monotonic()
        batch = left(client, client.submit(create).id, "validating")
        steps.took("check and plan", time.monotonic() - begun, memory)
        assert batch.request_counts.total == rows, batch
        if check_only:
            return steps
        work = ["airflow_batch_llm", "work", "--url", client.url, "--endpoint", f"http://127.0.0.1:{engine_port}"]
        work += ["--model", MODEL, "--home", str(home), "--max-num-seqs", "256"]
        begun = time.monotonic()
        parts.enter_context(process(work, folder / "worker.log", **{TOKEN_VARIABLE: token}))
        left(client, batch.id, "in_progress")
        steps.took("run on the fake engine", time.monotonic() - begun, memory)
        begun = time.monotonic()
        batch = left(client, batch.id, "finalizing")
        steps.took("assemble", time.monotonic() - begun, memory)
        assert batch.status == "completed", batch
        begun = time.monotonic()
        download(client, batch.output_file_id or "", rows)
        steps.took("download", time.monotonic() - begun, memory)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--check-only", action="store_true", help="upload and check, and run nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = run(Path(folder), given.rows, check_only=given.check_only)
    print(f"{given.rows:,} requests in one file\n")
    print("| step | seconds | rows/s | peak memory of the service, MB |\n|---|---|---|---|")
    print("\n".join(steps.lines))


if __name__ == "__main__":
    main()
