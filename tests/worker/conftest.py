"""A worker in the test's own event loop, between a real service and a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.settings import EngineSettings, ServiceSettings, WorkerSettings
from airflow_batch_llm.store.tables import attempts, chunks, parts
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from airflow_batch_llm.worker import delivery, engine_watch, runner
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.engine_watch import EngineWatch
from airflow_batch_llm.worker.runner import Runner
from airflow_batch_llm.worker.service_link import ServiceLink
from tests.conftest import RunningService
from tests.worker.fake_engine import MARK, FakeEngine

CHUNK_ROWS = 20


async def soon(check: Callable[[], Any], *, seconds: float = 15.0, what: str = "") -> Any:
    """Like ``eventually``, but lets the event loop go on."""
    end = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > end:
            pytest.fail(f"Not within {seconds:.0f} s: {what or check}; last answer: {answer!r}")
        await asyncio.sleep(0.02)
    return answer


@dataclass
class RunningWorker:
    """A worker as an asyncio task. ``task`` ends when it has drained."""

    runner: Runner
    task: asyncio.Task[None]

    async def drained(self, *, seconds: float = 15.0) -> None:
        self.runner.drain()
        async with asyncio.timeout(seconds):
            await self.task


@dataclass
class Bench:
    """What a test of the worker works with: submits tables, starts workers, reads targets and the store."""

    service: RunningService
    engine: FakeEngine
    folder: Path

    @contextlib.asynccontextmanager
    async def worker(self, *, max_num_seqs: int = 8, name: str = "w", **options: Any) -> AsyncIterator[RunningWorker]:
        settings = WorkerSettings(
            url=self.service.url,
            token=self.service.token,
            name=name,
            home=self.folder,
            engine=EngineSettings(model="fake", served_model_name=self.engine.model, max_num_seqs=max_num_seqs),
            **{"flush_seconds": 0.1, "claim_seconds": 0.05, "drain_seconds": 5.0} | options,
        )
        link = ServiceLink(settings.url, settings.token)
        engine = Engine(model=self.engine.model, base_url=self.engine.url)
        made = Runner(settings, link, engine, EngineWatch(None), identity=None)
        running = RunningWorker(made, asyncio.create_task(made.run()))
        try:
            yield running
            if not running.task.done():
                await running.drained()
            running.task.result()
        finally:
            running.task.cancel()
            await asyncio.wait({running.task})
            link.close()

    def submit(self, rows: int | Sequence[str], *, name: str = "table", priority: int = 0, **options: Any) -> str:
        """A planned batch over a table with the column ``text``; gives its id."""
        texts = [f"{name} row {row:05d}" for row in range(rows)] if isinstance(rows, int) else list(rows)
        pq.write_table(pa.table({"text": texts}), self.service.data_root / f"{name}.parquet")
        spec = DatasetSpec(
            source=f"{name}.parquet",
            target=f"{name}-out.parquet",
            messages=[Message(role="user", content="{text}")],
            **options,
        )
        batch = self.service.client.submit(BatchCreate(dataset=spec, model=self.engine.model, priority=priority))
        assert self.service.plan()
        return batch.id

    def get(self, batch_id: str) -> Batch:
        return self.service.client.get(batch_id)

    async def answered(self, batch_id: str, *, seconds: float = 15.0) -> None:
        """Waits until the worker has done with the batch."""
        await soon(
            lambda: self.get(batch_id).status == BatchStatus.FINALIZING, seconds=seconds, what=f"all of {batch_id}"
        )

    async def completed(self, batch_id: str, *, seconds: float = 15.0) -> list[dict[str, Any]]:
        """The target's rows, once every row is done."""
        await self.answered(batch_id, seconds=seconds)
        return self.assembled(batch_id, BatchStatus.COMPLETED)

    def assembled(self, batch_id: str, status: BatchStatus) -> list[dict[str, Any]]:
        """The target's rows, after a check that there is one for each source row, in order, and that counts add up."""
        assert self.service.assemble()
        batch = self.get(batch_id)
        assert batch.status == status, batch.progress.waiting_for
        assert batch.dataset is not None
        assert batch.manifest is not None
        target = pq.read_table(self.service.data_root / batch.dataset.target).to_pylist()
        source = pq.read_table(self.service.data_root / batch.dataset.source).to_pylist()
        assert [row["text"] for row in target] == [row["text"] for row in source]
        assert sum(batch.manifest.counts.values()) == len(source)
        assert all(row["llm_output"] == MARK + row["text"] for row in target if row["llm_status"] == "success")
        return target

    def chunks(self, batch_id: str) -> list[dict[str, Any]]:
        return self._rows(select(chunks).where(chunks.c.batch_id == batch_id).order_by(chunks.c.number))

    def parts(self, batch_id: str) -> list[dict[str, Any]]:
        return self._rows(select(parts).where(parts.c.batch_id == batch_id).order_by(parts.c.chunk_id, parts.c.number))

    def attempts(self, batch_id: str) -> list[dict[str, Any]]:
        joined = attempts.join(chunks, chunks.c.id == attempts.c.chunk_id)
        query = select(attempts).select_from(joined).where(chunks.c.batch_id == batch_id)
        return self._rows(query.order_by(attempts.c.chunk_id, attempts.c.attempt))

    def _rows(self, query: Any) -> list[dict[str, Any]]:
        with self.service.state.database.reading() as connection:
            return [row._asdict() for row in connection.execute(query)]


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return dataclasses.replace(settings, chunk_rows=CHUNK_ROWS, lease_seconds=6.0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROW_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(delivery, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(engine_watch, "ENDPOINT_LOOK_SECONDS", 0.1)


@pytest.fixture
async def bench(service: RunningService, tmp_path: Path) -> AsyncIterator[Bench]:
    async with FakeEngine() as engine:
        yield Bench(service, engine, tmp_path)
