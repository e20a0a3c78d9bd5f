"""Dry runs: what a table would take, without running it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS, TOKENIZE
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Estimate, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker

TEXTS = [f"{'word ' * (i % 7)}{i % 80}" for i in range(100)]


def submit(service: RunningService, *, dry_run: bool = True, endpoint: str = CHAT_COMPLETIONS, **options: Any) -> Batch:
    pq.write_table(pa.table({"text": TEXTS}), service.data_root / "s.parquet")
    asks: dict[str, Any] = {"messages": [Message(role="user", content="{text}")]}
    if endpoint == EMBEDDINGS:
        asks = {"input": "{text}"}
    spec = DatasetSpec(source="s.parquet", target="t.parquet", **{**asks, **options})
    batch = service.client.submit(BatchCreate(dataset=spec, model="m", dry_run=dry_run, endpoint=endpoint))
    assert service.plan()
    return batch


def estimated(service: RunningService, batch: Batch) -> Estimate:
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert ended.status == "completed"
    assert ended.manifest is None
    assert ended.estimate is not None
    return ended.estimate


def test_without_a_worker_characters_are_counted(service: RunningService) -> None:
    found = estimated(service, submit(service, parameters={"max_tokens": 10}))
    assert (found.rows, found.rows_duplicate, found.rows_asked) == (100, 0, 100)
    assert found.tokens_from == "characters"
    assert found.completion_tokens == 1_000
    assert (found.gpu_seconds, found.cost) == (None, None)
    assert [path.name for path in service.data_root.iterdir()] == ["s.parquet"]


@pytest.mark.parametrize("endpoint", [CHAT_COMPLETIONS, EMBEDDINGS])
def test_a_worker_tokenizes_a_sample_and_nothing_else_is_asked(service: RunningService, endpoint: str) -> None:
    worker = AnsweringWorker(service, endpoints=[endpoint, TOKENIZE], engine_identity="e")
    batch = submit(service, endpoint=endpoint)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    assert (claim.endpoint, claim.parameters, claim.choices) == (TOKENIZE, {}, None)
    assert len(lines) == 100 - len(TEXTS) + len(set(TEXTS))
    assert (b"prompt" if endpoint == EMBEDDINGS else b"messages") in bytes(lines[0].body)
    worker.link.commit(claim, [worker.store(claim, 0, lines)])
    found = estimated(service, batch)
    assert (found.rows_asked, found.sample_rows, found.tokens_from) == (len(set(TEXTS)), len(lines), "tokenized sample")
    assert found.prompt_tokens == len(lines)  # the worker of the tests says 1 for every row
    assert service.client.get(batch.id).request_counts.completed in (0, len(lines))


def test_time_and_money_follow_what_was_measured(service: RunningService) -> None:
    worker = AnsweringWorker(service, endpoints=[CHAT_COMPLETIONS, TOKENIZE], engine_identity="e")
    real = worker.store

    def store(*arguments: Any) -> Any:
        return real(*arguments).model_copy(update={"gpu_seconds": 5.0, "completion_tokens": 40})

    worker.store = store  # type: ignore[method-assign]
    worker.part_rows = 1_000
    done = submit(service, dry_run=False)
    worker.work()
    assert service.assemble()
    assert service.client.get(done.id).status == "completed"
    (service.data_root / "t.parquet").unlink()
    (service.data_root / "t.parquet.manifest.json").unlink()
    service.state.index_files.forget(done.id)
    service.settings = dataclasses.replace(service.settings, gpu_hour_price=3.6)
    batch = submit(service)
    worker.work()
    found = estimated(service, batch)
    distinct = len(set(TEXTS))
    assert found.completion_tokens == 40
    assert found.gpu_seconds == pytest.approx(5.0 * (found.prompt_tokens + 40) / (distinct + 40), abs=0.1)
    assert found.cost == pytest.approx(found.gpu_seconds / 1000, abs=1e-4)


def test_an_estimate_says_what_would_be_reused_and_faulty(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    submit(service, dry_run=False)
    worker.work()
    assert service.assemble()
    found = estimated(service, submit(service))
    assert (found.rows_reused, found.rows_asked) == (100, 0)
    pq.write_table(pa.table({"text": [b"x"]}), service.data_root / "bytes.parquet")
    spec = DatasetSpec(source="bytes.parquet", target="t.parquet", messages=[Message(role="user", content="{text}")])
    service.client.submit(BatchCreate(dataset=spec, model="m", dry_run=True))
    assert service.plan()
    assert service.assemble()
