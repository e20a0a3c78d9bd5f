"""A batch that ends the processes which work on it: it is told, it ends, and it keeps no other batch waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service import duties
from airflow_batch_llm.store.duties import Duty
from airflow_batch_llm.wire import Batch
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_bad_input import submit

pytestmark = BOTH_STORES


@pytest.fixture(autouse=True)
def table(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)
    pq.write_table(pa.table({"a": list(range(10))}), service.data_root / "s.parquet")


def lose(service: RunningService, kind: DutyKind, *, lost: bool = True) -> Duty:
    """A process takes the next duty and ends."""
    duty = service.state.duties.claim(kind, holder="somebody/1", lease_seconds=60.0)
    assert duty is not None
    service.state.duties.free_those_of("somebody/1", lost=lost)
    return duty


def waits_for(service: RunningService, batch: Batch) -> str:
    return service.client.get(batch.id).progress.waiting_for or ""


def test_a_batch_that_ends_five_planners_fails_and_says_so(service: RunningService) -> None:
    batch = submit(service, "s.parquet")
    for losses in range(duties.MOST_LOSSES):
        assert lose(service, DutyKind.PLAN).losses == losses
    assert service.plan()
    failed = service.client.get(batch.id)
    assert failed.errors is not None
    assert (failed.status, failed.errors.data[0].code) == ("failed", "planner_lost")
    assert "5 times a process of the service ended" in failed.errors.data[0].message
    assert not list(service.settings.storage_root.rglob("*.*"))


def test_a_batch_that_ended_four_planners_is_planned_by_the_fifth(service: RunningService) -> None:
    batch = submit(service, "s.parquet")
    for _ in range(duties.MOST_LOSSES - 1):
        lose(service, DutyKind.PLAN)
    assert len(answer_all(service, batch)) == 10
    assert waits_for(service, batch) == ""


def test_a_batch_that_ends_planners_lets_the_others_pass(service: RunningService) -> None:
    deadly = submit(service, "s.parquet", "one.parquet")
    other = submit(service, "s.parquet", "two.parquet")
    assert [lose(service, DutyKind.PLAN).batch_id for _ in range(2)] == [deadly.id, deadly.id]
    assert service.plan()
    assert service.client.get(other.id).status == "in_progress"
    assert service.client.get(deadly.id).status == "validating"


def test_a_service_that_is_stopped_while_it_plans_is_not_its_batch_to_blame(service: RunningService) -> None:
    submit(service, "s.parquet")
    assert [lose(service, DutyKind.PLAN, lost=False).losses for _ in range(9)] == [0] * 9


def test_a_lease_that_runs_out_tells_nothing_of_its_batch(service: RunningService) -> None:
    """The store was away, the machine too busy, the process frozen: this may happen to any batch, and often."""
    submit(service, "s.parquet")
    duty = None
    for _ in range(duties.MOST_LOSSES + 1):
        duty = eventually(lambda: service.state.duties.claim(DutyKind.PLAN, holder="somebody/1", lease_seconds=0.0))
    assert duty is not None
    assert duty.losses == 0


def test_a_batch_that_ends_assemblers_is_never_given_up_and_says_what_it_waits_for(service: RunningService) -> None:
    """Its answers are there: they are paid for."""
    batch = submit(service, "s.parquet")
    assert service.plan()
    AnsweringWorker(service).work()
    for _ in range(duties.MOST_LOSSES + 2):
        lose(service, DutyKind.ASSEMBLE)
    with _said(service, batch) as said:
        assert service.assemble()
    assert "7 times a process of the service ended in the assemble duty" in said[0]
    ended = service.client.get(batch.id)
    assert (ended.status, ended.progress.waiting_for) == ("completed", None)


@contextmanager
def _said(service: RunningService, batch: Batch) -> Iterator[list[str]]:
    """What the batch says while its target is written."""
    said: list[str] = []
    assemble = duties.assemble_table

    def heard(*arguments: Any) -> None:
        said.append(waits_for(service, batch))
        assemble(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duties, "assemble_table", heard)
        yield said


@pytest.mark.parametrize("error", [MemoryError(), duckdb.OutOfMemoryException("Out of Memory Error")])
def test_a_batch_that_memory_has_no_room_for_is_not_planned_for_ever(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any) -> None:
        raise error

    batch = submit(service, "s.parquet")
    monkeypatch.setattr(duties, "plan_table", full)
    for _ in range(duties.MOST_LOSSES):
        eventually(service.plan)
        assert service.client.get(batch.id).status == "validating"
    eventually(service.plan)
    assert service.client.get(batch.id).status == "failed"


def test_other_trouble_is_not_a_loss(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    batch = submit(service, "s.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(duties, "plan_table", full)
        for _ in range(duties.MOST_LOSSES + 1):
            eventually(service.plan)
    assert len(answer_all(service, batch)) == 10
