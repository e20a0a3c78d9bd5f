"""What a killed worker costs: SIGKILL at half of a table, and the same table without it.

    python benchmarks/kill_worker.py --rows 20000

The engine is the fake one of the tests, which outlives the worker and notes every row that it is asked; each answer
takes `--delay` seconds. The killed worker is started again at once under its name, as `batch-llm up` and every cluster
do. Prints a Markdown table, and ends with 1 if more rows ran twice than were with the engine or not yet flushed, or if
the whole took more than a tenth longer than without the kill. Needs the environment of `make test-fast`.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from request_file import MODEL, free_port, left, process, until

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.settings import TOKEN_FILE, TOKEN_VARIABLE, WorkerSettings
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message

FLUSH_SECONDS: float = WorkerSettings.__dataclass_fields__["flush_seconds"].default
MOST_LONGER = 1.1


@dataclass
class Found:
    """What one run came to. The last three are of the moment of the kill."""

    seconds: float
    asked: Counter[str]
    rows: list[dict[str, Any]]
    in_flight: int = 0
    uncommitted: int = 0
    rate: float = 0.0

    @property
    def twice(self) -> int:
        """Rows that the engine was asked again."""
        return sum(times - 1 for times in self.asked.values())


@dataclass
class Bench:
    """One table through a service, an engine and a worker."""

    folder: Path
    rows: int
    sequences: int
    delay: float

    def run(self, *, kill: bool) -> Found:
        self.folder.mkdir()
        self.notes, home = self.folder / "asked.txt", self.folder / "home"
        texts = [f"Package {row} is a library of routines. Which section is it of?" for row in range(self.rows)]
        pq.write_table(pa.table({"n": list(range(self.rows)), "text": texts}), self.folder / "in.parquet")
        engine_port, port = free_port(), free_port()
        engine = ["--port", str(engine_port), "--notes", str(self.notes), "--delay", str(self.delay)]
        serve = ["--home", str(home), "--data-root", str(self.folder), "--port", str(port)]
        self.work = ["airflow_batch_llm", "work", "--url", f"http://127.0.0.1:{port}", "--home", str(home)]
        self.work += ["--endpoint", f"http://127.0.0.1:{engine_port}", "--model", MODEL, "--name", "w"]
        self.work += ["--max-num-seqs", str(self.sequences)]
        with contextlib.ExitStack() as parts:
            parts.enter_context(process(["tests.chaos.engine_process", *engine], self.folder / "engine.log"))
            parts.enter_context(process(["airflow_batch_llm", "serve", *serve], self.folder / "service.log"))
            token = until(lambda: (home / TOKEN_FILE).read_text().strip())
            client = parts.enter_context(BatchClient(f"http://127.0.0.1:{port}", token))
            until(client.models)
            worker = parts.enter_context(self._worker(token, "worker.log"))
            until(lambda: client.models().data)
            batch_id = self._submit(client)
            left(client, batch_id, "validating")
            begun = time.monotonic()
            found = Found(0.0, Counter(), [])
            if kill:
                self._kill(client, batch_id, worker, found, begun)
                parts.enter_context(self._worker(token, "second.log"))
            batch = left(client, batch_id, "in_progress")
            found.seconds = time.monotonic() - begun
            batch = left(client, batch_id, "finalizing")
            assert (batch.status, batch.request_counts.completed) == ("completed", self.rows), batch
        found.asked = Counter(self.notes.read_text().split())
        found.rows = pq.read_table(self.folder / "out.parquet").to_pylist()
        assert [row["n"] for row in found.rows] == list(range(self.rows)), "the target has not the rows of its source"
        return found

    def _worker(self, token: str, log: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return process(self.work, self.folder / log, **{TOKEN_VARIABLE: token})

    def _submit(self, client: BatchClient) -> str:
        message = Message(role="user", content="{text}")
        folder = self.folder
        spec = DatasetSpec(source=str(folder / "in.parquet"), target=str(folder / "out.parquet"), messages=[message])
        return client.submit(BatchCreate(dataset=spec, model=MODEL)).id

    def _kill(
        self, client: BatchClient, batch_id: str, worker: subprocess.Popen[bytes], found: Found, begun: float
    ) -> None:
        """At half of the rows. It is stopped first, so that what is counted is what the kill finds."""
        until(lambda: client.get(batch_id).progress.rows_done >= self.rows / 2, seconds=1e6)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(self.delay + 0.5)  # what is on its way to the service arrives
        committed, asked = client.get(batch_id).progress.rows_done, len(self.notes.read_text().split())
        found.in_flight = 2 * self.sequences
        found.uncommitted = asked - committed
        found.rate = asked / (time.monotonic() - begun)
        worker.kill()
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--sequences", type=int, default=64, help="rows that the engine works on at once")
    parser.add_argument("--delay", type=float, default=0.5, help="seconds that each answer takes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = Bench(Path(folder) / "whole", given.rows, given.sequences, given.delay).run(kill=False)
        killed = Bench(Path(folder) / "killed", given.rows, given.sequences, given.delay).run(kill=True)
    longer = killed.seconds / whole.seconds
    bound = killed.in_flight + round(killed.rate * FLUSH_SECONDS)
    print(f"{given.rows:,} rows, {given.delay} s an answer, {2 * given.sequences} rows in flight\n")
    print("| | without a kill | SIGKILL of the worker at half |\n|---|---|---|")
    took = f"{killed.seconds:.1f} ({longer:.2f} times)"
    print(f"| seconds until the last row was committed | {whole.seconds:.1f} | {took} |")
    print(f"| rows asked of the engine twice | {whole.twice:,} | {killed.twice:,} |")
    print(f"| rows asked and not committed at the kill | | {killed.uncommitted:,} |")
    print(f"| rows in flight, and those of a flush interval of {FLUSH_SECONDS:.0f} s | | {bound:,} |")
    print(f"| target rows | {len(whole.rows):,} | {len(killed.rows):,} |")
    kept = whole.twice == 0 and killed.twice <= min(killed.uncommitted, bound) and longer <= MOST_LONGER
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
