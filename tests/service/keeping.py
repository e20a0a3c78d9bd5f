"""A service whose own bytes are cleaned at times that a test sets; ways to put batches into every state."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.service.cleaner import MARK, Cleaner
from airflow_batch_llm.service.notifier import Notifier
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker

DAY = 86_400.0


class House:
    """Cleans a service at a time of its own, which only goes on when a test says so."""

    def __init__(self, service: RunningService, **settings: Any) -> None:
        self.service = service
        self.now = time.time()
        self.settings = dataclasses.replace(service.settings, **settings)
        self.database = Database(self.settings.store_url, clock=lambda: self.now)
        self.cleaner = Cleaner.open(self.settings, database=self.database)
        self.notifier = Notifier.open(self.settings)

    def later(self, days: float) -> None:
        """Lets time go by, then cleans until nothing is left to do."""
        self.now += days * DAY
        while self.notifier.run_once():  # there is no webhook to be told
            pass
        for _ in range(1_000):
            if not self.cleaner.run_once():
                return
        raise AssertionError("The cleaner finds no end.")

    def stored(self, prefix: str = "") -> list[str]:
        return [key for key in self.service.state.storage.list(prefix) if key != MARK]

    def of(self, batch: Batch) -> set[str]:
        """The names of what a batch has in storage: its parts as ``chunks/``, the rest without attempts."""
        prefix = f"batches/{batch.id}/"
        names = (key.removeprefix(prefix) for key in self.stored(prefix))
        return {"chunks/" if name.startswith("chunks/") else name.partition("/")[2] for name in names}


def submit(
    service: RunningService, texts: Sequence[str] = ("a", "b", "c"), name: str = "s", *, plan: bool = True, **more: Any
) -> Batch:
    """A batch over a table of texts; planned, unless it is said otherwise."""
    path = service.data_root / f"{name}.parquet"
    if not path.exists():
        pq.write_table(pa.table({"text": list(texts)}), path)
    messages = [Message(role="user", content="{text}")]
    spec = DatasetSpec(source=f"{name}.parquet", target=f"{name}-out.parquet", messages=messages, overwrite=True)
    batch = service.client.submit(BatchCreate(dataset=spec, model="m", **more))
    if plan:
        assert service.plan()
    return service.client.get(batch.id)


def answered(
    service: RunningService, batch: Batch, *, identity: str | None = "e", failing: Sequence[int] = ()
) -> Batch:
    """The batch with its target, of which the rows in ``failing`` have failed."""
    AnsweringWorker(service, engine_identity=identity, failing=failing).work()
    assert service.assemble()
    return service.client.get(batch.id)


def cancelled_after(service: RunningService, batch: Batch, rows: int) -> Batch:
    """The batch cancelled when so many of its rows were done; nobody works on it any more."""
    worker = AnsweringWorker(service, engine_identity="e")
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    lines.sort(key=lambda line: line.row)
    worker.link.extend(claim, [worker.store(claim, 0, lines[:rows])])
    service.client.cancel(batch.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    return service.client.get(batch.id)
