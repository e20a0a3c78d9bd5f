"""Batches to look at, and the calls to look at them."""

from __future__ import annotations

from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from airflow_batch_llm.worker_wire import ResultLine, RowLine
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker

PROMPT = [Message(role="system", content="Judge."), Message(role="user", content="{text} of {n}")]


def table(service: RunningService, rows: int = 6, name: str = "s.parquet", **more: list[Any]) -> None:
    columns = {"text": [f"text {n}" for n in range(rows)], "n": list(range(rows)), **more}
    pq.write_table(pa.table(columns), service.data_root / name)


def submit(service: RunningService, *, endpoint: str = "/v1/chat/completions", **spec: Any) -> Batch:
    asked: dict[str, Any] = {"source": "s.parquet", "target": "t.parquet"}
    if endpoint != EMBEDDINGS:
        asked["messages"] = PROMPT
    dataset = DatasetSpec(**(asked | spec))
    batch = service.client.submit(BatchCreate(dataset=dataset, model="m", endpoint=endpoint))
    assert service.plan()
    return batch


def end(service: RunningService, batch: Batch, **worker: Any) -> Batch:
    AnsweringWorker(service, **worker).work()
    assert service.assemble()
    return service.client.get(batch.id)


def call(service: RunningService, batch_id: str, what: str = "rows", **query: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.get(f"{service.url}/v1/batches/{batch_id}/{what}", params=query, headers=headers, timeout=60)


def rows(service: RunningService, batch: Any, **query: Any) -> dict[str, Any]:
    answer = call(service, batch.id, **query)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def by_number(page: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["row"]: row for row in page["data"]}


def prompt_of(number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"text {number} of {number}"}]


def half_done(service: RunningService, *, done: int = 3, **worker: Any) -> None:
    """A worker has committed a part with the first rows of a chunk that it holds."""
    answering = AnsweringWorker(service, **worker)
    claimed = answering.claim()
    assert claimed is not None
    claim, lines = claimed
    lines.sort(key=lambda one: one.row)
    answering.link.extend(claim, [answering.store(claim, 0, lines[:done])])


class Answers(AnsweringWorker):
    """A worker that gives the answers of a test."""

    def __init__(self, service: RunningService, given: dict[int, dict[str, Any]], **more: Any) -> None:
        super().__init__(service, **more)
        self.given = given

    def _answer(self, line: RowLine) -> ResultLine:
        return ResultLine(line.row, **({"status": "success"} | self.given[line.row]))


def give(service: RunningService, given: list[dict[str, Any]], **more: Any) -> None:
    Answers(service, dict(enumerate(given)), **more).work()
    assert service.assemble()
