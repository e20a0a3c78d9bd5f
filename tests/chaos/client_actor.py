"""A client with one table or request file: it submits, asks, cancels, retries, deletes, and changes its source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import NoAnswerError, RefusedError
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.wire import LEAST_UNWATCHED, Batch, BatchCreate, BatchDeleted, DatasetSpec, Message
from tests.chaos.actors import Act, answered, said
from tests.chaos.answers import DEADLY, REFUSED
from tests.chaos.in_process import client_of
from tests.chaos.worker_actor import MODEL
from tests.chaos.world import TOKEN, World

TARGETS: Final = ("t.parquet", "t.jsonl", "t.csv", "t.csv.gz", "t.jsonl.zst", "t/")
ENDED: Final = ("completed", "failed", "expired", "cancelled")


@dataclass
class Client:
    """Knows one key, and the batches that were under it."""

    world: World
    name: str
    rows_asked: int
    """How many rows its source has, more or less."""
    busy: bool = False
    pending: bool = True
    """Whether a submit is still to be answered."""
    last: Batch | None = None
    """What was last heard of."""
    version: int = 0

    def __post_init__(self) -> None:
        rng = self.world.rng
        self.client = client_of(self.world.transport, TOKEN)
        self.key: str | None = f"key of {self.name}"
        self.series: str | None = None
        self.window = rng.choice([None, None, None, "1m", "1h"])
        self.priority = rng.randint(0, 2)
        self.reuse = rng.choice(["auto", "never"])
        self.unwatched = rng.choice([None, None, LEAST_UNWATCHED])
        self.changes()

    def acts(self) -> Sequence[Act]:
        if self.pending:
            return [Act("submits", self.submit, 3.0), Act("changes its source", self.changes, 0.1)]
        acts = [
            Act("submits again", self.submit, 0.5),
            Act("looks", self.look, 0.5),
            Act("cancels", self.cancel, 0.25),
            Act("pauses", self.pause, 0.25),
            Act("resumes", self.resume, 0.35),
            Act("changes its source", self.changes, 0.15),
        ]
        if self.last is not None and self.last.status in ENDED:
            acts += [Act("retries", self.retry, 0.7), Act("deletes", self.delete, 0.1)]
        return acts

    def submit(self) -> str:
        self.pending = True
        answer = answered(lambda: self.client.submit(self.create()))
        return self._heard(answer)

    def look(self) -> str:
        if self.last is None:
            return "nothing to look at"
        batch_id = self.last.id
        self._heard(answered(lambda: self.client.get(batch_id)))
        return said(answered(lambda: list(self.client.result_rows(batch_id))))

    def cancel(self) -> str:
        return self._on_last(self.client.cancel)

    def pause(self) -> str:
        return self._on_last(self.client.pause)

    def resume(self) -> str:
        return self._on_last(self.client.resume)

    def retry(self) -> str:
        return self._on_last(self.client.retry)

    def delete(self) -> str:
        if self.last is None:
            return "nothing to delete"
        batch_id = self.last.id
        self.world.watch.may_go.add(batch_id)
        answer = answered(lambda: self.client._call(BatchDeleted, "DELETE", f"/v1/batches/{batch_id}"))
        if not isinstance(answer, (RefusedError, NoAnswerError)):
            self.last = None
        return said(answer)

    def changes(self) -> str | None:
        """Other rows where the client's source is."""
        self.version += 1
        self.write(texts(self.world, self.rows_asked, f"{self.name} v{self.version}"))
        return f"version {self.version}"

    def create(self) -> BatchCreate:
        raise NotImplementedError

    def write(self, rows: list[str]) -> None:
        raise NotImplementedError

    def _on_last(self, verb: Any) -> str:
        if self.last is None:
            return "nothing to do that to"
        batch_id = self.last.id
        return self._heard(answered(lambda: verb(batch_id)))

    def _heard(self, answer: Any) -> str:
        if isinstance(answer, Batch):
            self.pending, self.last = False, answer
            return f"{answer.id[:14]} generation {answer.generation} is {answer.status}"
        if isinstance(answer, RefusedError):
            self.pending = False
            if answer.code == "target_exists":  # no other client has the same target
                self.world.stumbles.append(f"{self.name} was refused its own target: {answer}")
        return said(answer)


class TableClient(Client):
    """Its source is one Parquet file, or several; its target is never another client's."""

    def __post_init__(self) -> None:
        self.folder = self.world.data / self.name
        self.folder.mkdir()
        self.target = f"{self.name}/out/{self.world.rng.choice(TARGETS)}"
        self.files = self.world.rng.choice([1, 1, 2])
        super().__post_init__()
        self.series = self.world.rng.choice([None, f"series of {self.name}"])
        self.canary_rows = self.world.rng.choice([None, None, 1, 7])

    def acts(self) -> Sequence[Act]:
        cleared = [Act("is cleared", self.clear, 0.3)] if self.series is not None and not self.pending else []
        return [*super().acts(), *cleared]

    def clear(self) -> str:
        """As a task of Airflow that is cleared: what it submits next is new, and takes over from what went before."""
        self.key = f"{self.key} again"
        return self.submit()

    def create(self) -> BatchCreate:
        spec = DatasetSpec(
            source=f"{self.name}/in/",
            target=self.target,
            messages=[Message(role="user", content="{text}")],
            parameters={"max_tokens": 9},
        )
        return BatchCreate(
            dataset=spec,
            model=MODEL,
            key=self.key,
            series=self.series,
            priority=self.priority,
            reuse=self.reuse,
            completion_window=self.window,
            canary_rows=self.canary_rows,
            holder=self.name,
            pause_unwatched_after=self.unwatched,
        )

    def write(self, rows: list[str]) -> None:
        table = [{"number": number, "text": text, "extra": f"{text}!"} for number, text in enumerate(rows)]
        size = -(-len(table) // self.files)
        for number in range(self.files):
            path = self.folder / "in" / f"{number}.parquet"
            path.parent.mkdir(exist_ok=True)
            _replace(path, table[number * size : (number + 1) * size], self.version)
        self.world.sources[self.target] = table


class FileClient(Client):
    """Its source is a request file, which it uploads before each submit."""

    def __post_init__(self) -> None:
        self.bytes = b""
        super().__post_init__()
        if self.world.rng.random() < 0.3:
            self.key = None

    def create(self) -> BatchCreate:
        file = self.client.upload_bytes("requests.jsonl", self.bytes)
        return BatchCreate(
            input_file_id=file.id,
            endpoint=CHAT_COMPLETIONS,
            completion_window=self.window or "24h",
            key=self.key,
            priority=self.priority,
            holder=self.name,
            pause_unwatched_after=self.unwatched,
        )

    def write(self, rows: list[str]) -> None:
        lines = [
            {
                "custom_id": f"{self.name}-{number}",
                "method": "POST",
                "url": CHAT_COMPLETIONS,
                "body": {"model": MODEL, "messages": [{"role": "user", "content": text}]},
            }
            for number, text in enumerate(rows)
        ]
        self.bytes = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        asked = {f"{self.name}-{number}": text for number, text in enumerate(rows)}
        self.world.requests[hashlib.sha256(self.bytes).hexdigest()] = asked


def texts(world: World, count: int, name: str) -> list[str]:
    """Rows of which some are equal, to each other or to those of other clients, some are refused, and one or two may
    be deadly."""
    rng = world.rng
    found: list[str] = []
    deadly = {rng.randrange(count) for _ in range(rng.choice([0, 0, 0, 1, 2]))}
    for number in range(count):
        kind = rng.random()
        if number in deadly:
            found.append(f"{name} {rng.choice(list(DEADLY))} {number}")
        elif kind < 0.2:
            found.append(f"common {rng.randint(0, 5)}")
        elif kind < 0.3 and found:
            found.append(rng.choice(found))
        elif kind < 0.4:
            found.append(f"{REFUSED} {rng.randint(0, 3)}")
        else:
            found.append(f"{name} row {number}")
    return found


def _replace(path: Path, rows: list[dict[str, Any]], version: int) -> None:
    """Whole or not at all, and seen to be another version however short a time has passed."""
    new = path.with_name(f".{path.name}")
    schema = pa.schema([("number", pa.int64()), ("text", pa.string()), ("extra", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), new)
    os.utime(new, ns=(version * 10**9, version * 10**9))
    new.replace(path)
