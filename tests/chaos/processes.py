"""Seeded kills of real processes: ``python -m tests.chaos.processes --schedules N --seed S --engine fake|vllm``.

A service, workers and engines run as they do in production, with a bad network between workers and service. Whatever
is killed, frozen or cut off: every batch ends, and every source row has exactly one answer, its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

import tests.demo_path  # noqa: F401
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from airflow_batch_llm.worker_wire import ResultLine, decompress, read_lines
from tests.chaos.fault_proxy import FAULTS
from tests.chaos.real_parts import EngineKind, Parts, until
from tests.chaos.service_process import LEASE_SECONDS
from tests.worker.fake_engine import MARK

ROWS: Final = 400
END_SECONDS: Final = 240.0
PROGRESS_SECONDS: Final[dict[EngineKind, float]] = {"fake": 5.0, "vllm": 60.0}
"""How long an event waits for rows: a new vLLM takes half a minute to start."""


@dataclass
class Schedule:
    """What happens to the processes of one seed, and what came of it."""

    seed: int
    parts: Parts
    rows: int = ROWS
    """Of each batch."""
    log: list[str] = field(default_factory=list)
    _frozen: dict[str, float] = field(default_factory=dict)
    """When a frozen worker wakes up."""

    def run(self, events: int) -> list[str]:
        """Gives the promises that were broken."""
        self._rng, self._begun = random.Random(self.seed), time.monotonic()
        self._submit()
        for _ in range(events):
            self._go_on(self._rng.randint(20, 150))
            name, act = self._rng.choice(self._acts())
            self._say(name)
            act()
        self.parts.proxy.fault = "none"
        self._pause(max([0.0, *(end - time.monotonic() for end in self._frozen.values())]))
        self._say("the faults stop")
        return [f"{batch.id}: {what}" for batch in self._ended() for what in self._faults(batch)]

    @property
    def asked_again(self) -> int:
        """Rows that the engines were asked more than once."""
        asked = (self.parts.asked(batch_id) for batch_id in self.batches)
        return sum(times - 1 for counts in asked for times in counts.values())

    def _submit(self) -> None:
        self.texts = {
            name: [self._rng.choice([f"common {row % 7}", f"{name} row {row}"]) for row in range(self.rows)]
            for name in ("table", "other", "file")
        }
        self.batches: dict[str, str] = {}
        for name, texts in self.texts.items():
            create = self._file(texts) if name == "file" else self._table(name, texts)
            self.batches[self.parts.client.submit(create).id] = name

    def _table(self, name: str, texts: list[str]) -> BatchCreate:
        pq.write_table(pa.table({"n": list(range(self.rows)), "text": texts}), self.parts.data / f"{name}.parquet")
        spec = DatasetSpec(
            source=f"{name}.parquet",
            target=f"{name}-out.parquet",
            messages=[Message(role="user", content="{text}")],
            parameters={"max_tokens": 4},
        )
        return BatchCreate(dataset=spec, model=self.parts.model, key=name)

    def _file(self, texts: list[str]) -> BatchCreate:
        lines = []
        for row, text in enumerate(texts):
            body = {"model": self.parts.model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
            lines.append({"custom_id": f"{row}", "method": "POST", "url": CHAT_COMPLETIONS, "body": body})
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        file = self.parts.client.upload_bytes("requests.jsonl", content)
        return BatchCreate(input_file_id=file.id, endpoint=CHAT_COMPLETIONS, completion_window="24h", key="file")

    def _acts(self) -> list[tuple[str, Callable[[], None]]]:
        worker = self._rng.choice([name for name in self.parts.names if name.startswith("w")])
        fault = self._rng.choice(FAULTS)
        acts: list[tuple[str, Callable[[], None]]] = [
            (f"SIGKILL of {worker}", lambda: self.parts.again(worker)),
            (f"SIGTERM to {worker}", lambda: self._signal(worker, signal.SIGTERM)),
            (f"SIGSTOP of {worker}", lambda: self._freeze(worker)),
            ("SIGKILL of the service", lambda: self.parts.again("service")),
            ("SIGKILL of the planner", lambda: self._kill_duty("plan")),
            ("SIGKILL of the assembler", lambda: self._kill_duty("assemble")),
            ("SIGKILL of an engine", lambda: self._kill_engine(worker)),
            (f"the network: {fault}", lambda: self._network(fault)),
        ]
        return acts

    def _signal(self, name: str, number: signal.Signals) -> None:
        if self.parts.running[name].poll() is None:
            self.parts.running[name].send_signal(number)

    def _freeze(self, name: str) -> None:
        """Beyond its lease; it wakes up while others have its chunks."""
        self._signal(name, signal.SIGSTOP)
        self._frozen[name] = time.monotonic() + LEASE_SECONDS + 2.0

    def _kill_duty(self, kind: str) -> None:
        if (process := self.parts.duty(kind)) is not None:
            process.kill()

    def _kill_engine(self, worker: str) -> None:
        if self.parts.engine == "fake":
            self.parts.again("engine")
        elif (process := self.parts.own_engine(worker)) is not None:
            process.kill()

    def _network(self, fault: Any) -> None:
        self.parts.proxy.fault = fault
        self._pause(self._rng.uniform(0.5, 2.0))
        self.parts.proxy.fault = "none"

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for name in [name for name, wakes in self._frozen.items() if wakes <= now]:
                del self._frozen[name]
                self._signal(name, signal.SIGCONT)
                self._say(f"{name} wakes up")
            self.parts.restart_dead()
            time.sleep(min(0.1, end - now))

    def _go_on(self, rows: int) -> None:
        """Lets some rows be asked, so that what happens next meets somebody at work; but does not wait for ever."""
        enough, end = self._asked() + rows, time.monotonic() + PROGRESS_SECONDS[self.parts.engine]
        while self._asked() < enough and time.monotonic() < end:
            self._pause(0.1)

    def _asked(self) -> int:
        return sum(sum(self.parts.asked(batch_id).values()) for batch_id in self.batches)

    def _ended(self) -> list[Batch]:
        def look() -> list[Batch] | None:
            self._pause(0.1)
            found = [self.parts.client.get(batch_id) for batch_id in self.batches]
            return found if all(batch.status.ended for batch in found) else None

        ended: list[Batch] = until(look, END_SECONDS, f"the end of {self.batches}")
        return ended

    def _faults(self, batch: Batch) -> Iterator[str]:
        counts = batch.request_counts
        if (batch.status, counts.total, counts.completed, counts.failed) != ("completed", self.rows, self.rows, 0):
            yield f"it is {batch.status}, with {counts} and the errors {batch.errors}"
            return
        name = self.batches[batch.id]
        answers = self._of_table(name) if batch.dataset else self._of_file(batch)
        if [text for text, _ in answers] != self.texts[name]:
            yield f"it has {len(answers)} rows, which are not those of its source in their order"
        if self.parts.engine == "fake":
            yield from (f"{answer!r} answers {text!r}" for text, answer in answers if answer != MARK + text)
        elif any(not isinstance(answer, str) for _, answer in answers):
            yield "a row has no answer"
        yield from self._part_faults(batch)

    def _of_table(self, name: str) -> list[tuple[str, Any]]:
        rows = pq.read_table(self.parts.data / f"{name}-out.parquet").to_pylist()
        in_order = [row for place, row in enumerate(rows) if (row["n"], row["llm_status"]) == (place, "success")]
        return [(row["text"], row["llm_output"]) for row in in_order]

    def _of_file(self, batch: Batch) -> list[tuple[str, Any]]:
        assert batch.output_file_id is not None
        lines = [json.loads(line) for line in self.parts.client.file_lines(batch.output_file_id)]
        texts = self.texts["file"]
        return [
            (texts[int(line["custom_id"])], line["response"]["body"]["choices"][0]["message"]["content"])
            for line in lines
        ]

    def _part_faults(self, batch: Batch) -> Iterator[str]:
        """No row stands in two parts, and each part is what was committed."""
        with sqlite3.connect(f"file:{self.parts.home / 'store.sqlite'}?mode=ro", uri=True) as store:
            found = store.execute("SELECT storage_key, sha256, rows FROM parts WHERE batch_id = ?", [batch.id])
            rows: Counter[int] = Counter()
            for key, sha256, count in found.fetchall():
                content = (self.parts.home / "storage" / key).read_bytes()
                lines = list(read_lines(decompress(content), ResultLine))
                rows.update(line.row for line in lines)
                if (hashlib.sha256(content).hexdigest(), len(lines)) != (sha256, count):
                    yield f"part {key} is not what was committed"
        if rows and max(rows.values()) > 1:
            yield f"rows stand in two parts: {[row for row, times in rows.items() if times > 1]}"

    def _say(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._begun:6.1f} s  {what}")


def run(
    seed: int, engine: EngineKind, *, events: int, workers: int = 2, rows: int = ROWS
) -> tuple[Schedule, list[str]]:
    """Runs the schedule of a seed with processes of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Parts(Path(folder), engine, workers) as parts:
        schedule = Schedule(seed, parts, rows)
        try:
            broken = schedule.run(events)
        except TimeoutError as error:
            broken = [str(error), *_tails(Path(folder))]
        schedule.log.append(f"{schedule.asked_again} rows of {len(schedule.batches) * rows} were asked again")
        return schedule, broken


def _tails(folder: Path) -> list[str]:
    """What the processes said last."""
    return [f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(folder.glob("*.log"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=["fake", "vllm"], default="fake")
    parser.add_argument("--events", type=int, default=8, help="of each schedule")
    given = parser.parse_args()
    failed = []
    for seed in range(given.seed, given.seed + given.schedules):
        begun = time.monotonic()
        schedule, broken = run(seed, given.engine, events=given.events)
        print(f"seed {seed}: {'BROKEN' if broken else 'kept'} in {time.monotonic() - begun:.0f} s", flush=True)
        print("\n".join(f"    {line}" for line in [*schedule.log, *(f"* {what}" for what in broken)]), flush=True)
        failed += [seed] if broken else []
    print(f"{given.schedules} schedules with the {given.engine} engine, {len(failed)} broke a promise {failed or ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
