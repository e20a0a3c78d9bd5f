"""What a generation goes on from, whatever became of those before it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import ConflictError, NoAnswerError
from airflow_batch_llm.settings import Limits
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker, answer_all

pytestmark = BOTH_STORES


def submit(service: RunningService, *, prompt: str = "{text}", **more: Any) -> Batch:
    if not (service.data_root / "s.parquet").exists():
        pq.write_table(pa.table({"text": [f"text {i}" for i in range(6)]}), service.data_root / "s.parquet")
    spec = DatasetSpec(source="s.parquet", target="t.parquet", messages=[Message(role="user", content=prompt)])
    return service.client.submit(BatchCreate(dataset=spec, model="m", key="k", reuse="never", **more))


def test_a_generation_that_was_never_planned_is_passed_over(service: RunningService) -> None:
    first = submit(service)
    assert service.plan()
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines[:4])])
    service.client.cancel(first.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    for _ in range(2):
        service.client.cancel(submit(service).id)
    last = submit(service)
    assert last.generation == 4
    assert service.plan()
    assert service.client.get(last.id).progress.rows_done == 4
    worker.work()
    assert service.assemble()
    assert sorted(worker.asked) == list(range(6))


def test_a_plan_waits_for_the_last_answers_of_the_generation_before(service: RunningService) -> None:
    first = submit(service)
    assert service.plan()
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    service.client.cancel(first.id)
    second = submit(service)
    assert service.plan()
    waiting = service.client.get(second.id)
    assert waiting.status == "validating"
    assert f"It waits until {first.id} has ended" in (waiting.progress.waiting_for or "")
    worker.link.release(claim, [worker.store(claim, 0, lines[:5])], outcome="stopped")
    assert service.assemble()
    eventually(service.plan)
    assert service.client.get(second.id).progress.rows_done == 5
    worker.work()
    assert service.assemble()
    assert sorted(worker.asked) == list(range(6))


def test_a_batch_that_is_cancelled_while_it_waits_for_the_one_before_waits_no_more(service: RunningService) -> None:
    first = submit(service)
    assert service.plan()
    assert AnsweringWorker(service).claim() is not None
    service.client.cancel(first.id)
    second = submit(service)
    assert service.plan()
    assert service.client.get(second.id).progress.waiting_for
    cancelled = service.client.cancel(second.id)
    assert (cancelled.status, cancelled.progress.waiting_for) == ("cancelled", None)


def test_what_completed_under_a_key_is_no_answer_to_a_changed_prompt(service: RunningService) -> None:
    first = submit(service)
    assert len(answer_all(service, first)) == 6
    with pytest.raises(ConflictError, match="another spec"):
        submit(service, prompt="{text}?")
    second = submit(service, prompt="{text}?", on_changed="resubmit")
    assert (second.generation, submit(service, prompt="{text}?", on_changed="resubmit").id) == (2, second.id)
    assert service.plan()
    assert service.client.get(second.id).progress.rows_done == 0
    worker = AnsweringWorker(service)
    assert worker.work() == 6
    assert service.assemble()
    assert service.client.get(second.id).status == "completed"


def test_a_batch_that_replaces_another_counts_among_the_creates_of_an_hour(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = dataclasses.replace(service.settings, limits=Limits(creates_per_hour=2))
    monkeypatch.setitem(vars(service.state), "settings", limited)
    submit(service)
    second = submit(service, prompt="{text}?", on_changed="resubmit")
    with pytest.raises(NoAnswerError, match="the limit is 2"):
        submit(service, prompt="{text}!", on_changed="resubmit")
    assert submit(service, prompt="{text}?", on_changed="resubmit").id == second.id


def test_a_changed_source_keeps_nothing_of_what_was_done_with_the_source_before(service: RunningService) -> None:
    first = submit(service)
    assert service.plan()
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines[:4])])
    pq.write_table(pa.table({"text": [f"other {i}" for i in range(6)]}), service.data_root / "s.parquet")
    second = submit(service, on_changed="resubmit")
    worker.link.release(claim, [], outcome="stopped")
    assert service.client.get(first.id).status == "cancelling"
    assert service.assemble()
    eventually(service.plan)
    assert service.client.get(second.id).progress.rows_done == 0
