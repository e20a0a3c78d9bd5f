"""A service with batches in every state, and what makes them move: the real store, and a worker that answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.service import app
from airflow_batch_llm.service.listening import bound
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message, Origin
from airflow_batch_llm.worker_wire import Claim, PartRecord, ResultLine, RowLine
from tests.conftest import RunningService, eventually
from tests.service.answering import AnsweringWorker

MODEL = "Qwen/Qwen3-8B"
LABELS = ("price", "quality", "delivery", "other")
REVIEWS = (
    "Cheaper than in the shop round the corner.",
    "The handle broke on the second day.",
    "It came a week late, and wet.",
    "My cat likes the box.",
    "Worth every cent of it.",
)


class LabellingWorker(AnsweringWorker):
    """Answers each row with one of the labels, in turn."""

    def __init__(self, service: RunningService, *, failing: Container[int] = (), name: str = "gpu-1") -> None:
        super().__init__(service, model=MODEL, failing=failing, engine_identity="e", name=name)

    def _answer(self, line: RowLine) -> ResultLine:
        answer = super()._answer(line)
        if answer.status != "success":
            return answer
        label = LABELS[line.row % 7 % len(LABELS)]
        return msgspec.structs.replace(answer, output=label, confidence=0.9, prompt_tokens=40, completion_tokens=2)

    def store(self, claim: Claim, number: int, lines: list[RowLine]) -> PartRecord:
        rows = len(lines)
        counts = {"prompt_tokens": 40 * rows, "cached_tokens": 16 * rows, "completion_tokens": 2 * rows}
        return super().store(claim, number, lines).model_copy(update=counts | {"gpu_seconds": 0.05 * rows})


def submitted(
    service: RunningService, name: str, rows: int, *, plan: bool = True, model: str = MODEL, **more: Any
) -> Batch:
    """A batch over a table of reviews, of a Dag named after ``name``; planned, unless it is said otherwise."""
    texts = [f"{REVIEWS[row % len(REVIEWS)]} ({name} {row})" for row in range(rows)]
    pq.write_table(pa.table({"id": range(rows), "text": texts}), service.data_root / f"{name}.parquet")
    spec = DatasetSpec(
        source=f"{name}.parquet",
        target=f"{name}-labels.parquet",
        messages=[
            Message(role="system", content="Answer with one word."),
            Message(role="user", content="What is this review about?\n\n{text}"),
        ],
        choices=list(LABELS),
        overwrite=True,
    )
    origin = Origin(deployment="airflow", dag_id=f"label_{name}", task_id="classify", run_id="scheduled__2026-01-31")
    batch = service.client.submit(BatchCreate(dataset=spec, model=model, origin=origin, **more))
    if plan:
        assert service.plan()
    return batch


@dataclass
class Running:
    """A batch of which a worker holds a chunk. It gets on when a test says so."""

    batch: Batch
    worker: LabellingWorker
    _claim: Claim
    _lines: list[RowLine]
    _parts: int = 0

    def does(self, rows: int) -> None:
        """Has the worker hand in so many more rows."""
        piece, self._lines = self._lines[:rows], self._lines[rows:]
        self.worker.link.extend(self._claim, [self.worker.store(self._claim, self._parts, piece)])
        self._parts += 1

    def finishes(self) -> None:
        """Has it hand in the rest and give back the chunk."""
        self.worker.link.commit(self._claim, [self.worker.store(self._claim, self._parts, self._lines)])


def running(service: RunningService, name: str, rows: int, worker: LabellingWorker, **more: Any) -> Running:
    batch = submitted(service, name, rows, **more)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    return Running(batch, worker, claim, sorted(lines, key=lambda line: line.row))


@dataclass
class EveryState:
    """Batches by their state, in one service."""

    service: RunningService
    completed: Batch
    some_failed: Batch
    cancelled: Batch
    failed: Batch
    paused: Batch
    waiting: Batch
    running: Running

    @property
    def batches(self) -> dict[str, Batch]:
        named = {name: value for name, value in vars(self).items() if isinstance(value, Batch)}
        return named | {"running": self.running.batch}


def every_state(service: RunningService) -> EveryState:
    worker = LabellingWorker(service)
    completed = submitted(service, "reviews", 40)
    worker.work()
    assert service.assemble()
    some_failed = submitted(service, "tickets", 30)
    LabellingWorker(service, failing=range(3, 30, 5)).work()
    assert service.assemble()
    worker = LabellingWorker(service)
    stopped = running(service, "mails", 20, worker)
    stopped.does(6)
    service.client.cancel(stopped.batch.id)
    worker.link.release(stopped._claim, [], outcome="stopped")
    assert service.assemble()
    failed = submitted(service, "gone", 5, plan=False)
    (service.data_root / "gone.parquet").unlink()
    assert service.plan()
    paused = submitted(service, "chats", 25)
    service.client.pause(paused.id)
    waiting = submitted(service, "letters", 12, model="mistralai/Mistral-7B")
    goes_on = running(service, "posts", 60, worker)
    goes_on.does(24)
    return EveryState(service, completed, some_failed, stopped.batch, failed, paused, waiting, goes_on)


@dataclass
class Restartable:
    """A service that a test can end and start again, at the same address with the same store."""

    settings: ServiceSettings
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> RunningService:
        state = ServiceState.open(self.settings)
        return self._held.enter_context(served(state))

    def stop(self) -> None:
        self._held.close()


class Below:
    """What a proxy does that serves something below a path: it takes the path away, and says nothing of it."""

    def __init__(self, path: str, served: ASGIApp) -> None:
        self._path, self._served = path, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith(f"{self._path}/"):
                await Response(status_code=404)(scope, receive, send)
                return
            scope = {**scope, "path": scope["path"].removeprefix(self._path)}
        await self._served(scope, receive, send)


@contextlib.contextmanager
def served(state: ServiceState) -> Iterator[RunningService]:
    """``state`` on its port. It ends at once, also while pages wait for changes, as the real process does."""
    settings = state.settings
    config = uvicorn.Config(app.create_app(state), log_level="warning", timeout_graceful_shutdown=1)
    server = app._Server(config)
    token = settings.token_path.read_text().strip()
    with bound(settings.host, settings.port) as sockets:
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        eventually(lambda: server.started, what="the service listens")
        with BatchClient(f"http://127.0.0.1:{settings.port}", token) as client:
            yield RunningService(settings, state, token, client)
        server.should_exit = True
        thread.join()
