"""A server that answers the pages' calls in the shapes of the service, and notes what it was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from pool import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.page_wire import BatchLine, BatchReport, LineProgress, Overview, OverviewQuery, WorkerList
from airflow_batch_llm.wire import Origin
from tests.conftest import eventually

TOKEN = "the-token-of-the-connection"
PROMPT = "what nobody may read in a log"
DEPLOYMENT = "this-airflow"


def line(batch_id: str, dag_id: str | None, deployment: str = DEPLOYMENT) -> BatchLine:
    origin = dag_id and Origin(deployment=deployment, dag_id=dag_id, task_id="t", run_id="r")
    progress = LineProgress(rows_total=2, rows_done=1, rows_failed=0, rows_reused=0, rows_duplicate=0)
    return BatchLine(
        id=batch_id,
        status=BatchStatus.IN_PROGRESS,
        origin=origin or None,
        endpoint="/v1/chat/completions",
        team="default",
        generation=1,
        priority=0,
        created_at=1,
        progress=progress,
    )


LINES = [
    line("batch_reviews", "reviews"),
    line("batch_salaries", "salaries"),
    line("batch_script", None),
    line("batch_foreign", "reviews", "another-airflow"),
]


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class ServiceDouble:
    url: str
    asked: list[Asked] = field(default_factory=list)
    answers: dict[str, Response] = field(default_factory=dict)
    """What a path answers instead of what it would."""
    waiting: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Set once a caller that waited has hung up."""

    def forget(self) -> None:
        self.asked.clear()
        self.answers.clear()
        self.waiting.clear()
        self.left.clear()

    def last(self, suffix: str) -> Asked:
        return [asked for asked in self.asked if asked.path.endswith(suffix)][-1]

    async def answer(self, request: Request) -> Response:
        body = await request.json() if await request.body() else None
        path = request.url.path
        self.asked.append(Asked(request.method, path, dict(request.query_params), body, dict(request.headers)))
        if path in self.answers:
            return self.answers[path]
        match path.rpartition("/")[2]:
            case "overview":
                return await self._overview(request, OverviewQuery.model_validate(body))
            case "report":
                return _json(BatchReport(version="1", at=2.0))
            case "workers":
                return _json(WorkerList(at=2.0, workers=[], queue=[]))
            case "download":
                named = {"Content-Disposition": 'attachment; filename="labels.csv"'}
                return Response(b"text,llm_output\n" * 1000, media_type="text/csv", headers=named)
            case call:
                return JSONResponse({"call": call, "said": PROMPT})

    async def _overview(self, request: Request, asked: OverviewQuery) -> Response:
        """Filters by ids alone: what a user may see is to hold also where the service is of another version."""
        if asked.wait:
            await self._until_hung_up(request)
        lines = [each for each in LINES if asked.batch_ids is None or each.id in asked.batch_ids]
        return _json(Overview(version="1", at=2.0, data=lines, dag_ids=["reviews", "salaries"], teams=["a", "b"]))

    async def _until_hung_up(self, request: Request) -> None:
        self.waiting.set()
        while not await request.is_disconnected():
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.02)
        self.left.set()


def _json(answer: Any) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """``app`` on a free port, served by a thread; gives its address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the server listens")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def running_double() -> Iterator[ServiceDouble]:
    double = ServiceDouble("")
    methods = ["GET", "POST"]
    with listening(Starlette(routes=[Route("/{path:path}", double.answer, methods=methods)])) as url:
        double.url = url
        yield double
