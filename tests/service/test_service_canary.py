"""The first rows of a table run before the others, and what waits for the verdict on them."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.keeping import submit
from tests.service.requests import file_of, line

TEXTS = [f"text {row}" for row in range(8)]


def asked(service: RunningService, **more: Any) -> set[int]:
    """The rows that a worker is given, and does."""
    worker = AnsweringWorker(service, engine_identity="e", **more)
    worker.work()
    return set(worker.asked)


def completed(service: RunningService, batch: Batch) -> list[dict[str, Any]]:
    assert service.assemble()
    assert service.client.get(batch.id).status == "completed"
    return pq.read_table(service.data_root / "s-out.parquet").to_pylist()


def test_the_first_rows_are_asked_first_and_the_others_once_those_have_passed(service: RunningService) -> None:
    batch = submit(service, TEXTS, canary_rows=3)
    assert (batch.canary_rows, batch.canary, batch.paused) == (3, "open", None)
    assert asked(service) == {0, 1, 2}
    paused = service.client.get(batch.id)
    assert (paused.status, paused.paused, paused.canary) == ("in_progress", "canary", "open")
    said = f"Its first 3 rows are done, and the others wait until those are judged: `batch-llm resume {batch.id}` lets"
    assert (paused.progress.waiting_for or "").startswith(said)
    assert sorted(row.row for row in service.client.result_rows(batch.id)) == [0, 1, 2]
    assert not service.assemble()
    assert service.client.resume(batch.id, reason=PauseReason.REQUESTED).paused == "canary"
    resumed = service.client.resume(batch.id, reason=PauseReason.CANARY)
    assert (resumed.paused, resumed.canary) == (None, "passed")
    assert asked(service) == {3, 4, 5, 6, 7}
    assert [row["llm_output"] for row in completed(service, batch)] == [f"answer {row}" for row in range(8)]


@pytest.mark.parametrize("rows", [8, 9])
def test_a_table_without_other_rows_just_completes(service: RunningService, rows: int) -> None:
    batch = submit(service, TEXTS, canary_rows=rows)
    assert batch.canary is None
    assert asked(service) == set(range(8))
    assert len(completed(service, batch)) == 8


def test_a_row_of_the_canary_that_is_known_or_equals_another_one_is_done_with_that_one(service: RunningService) -> None:
    AnsweringWorker(service, engine_identity="e")
    texts = ["a", "b", "a", "b", "c", "a"]
    batch = submit(service, texts, canary_rows=4)
    assert asked(service) == {0, 1}
    assert service.client.get(batch.id).paused == "canary"
    service.client.resume(batch.id)
    assert asked(service) == {4}
    assert [row["llm_output"] for row in completed(service, batch)] == [f"answer {row}" for row in (0, 1, 0, 1, 4, 0)]
    again = submit(service, ["a", "b", "x"], name="t", canary_rows=2)
    assert (again.paused, again.progress.rows_reused) == ("canary", 2)
    service.client.resume(again.id)
    assert asked(service) == {2}


def test_rows_of_the_canary_are_not_asked_again_by_the_next_generation_but_where_they_failed(
    service: RunningService,
) -> None:
    first = submit(service, TEXTS, canary_rows=3, key="k")
    assert asked(service, failing={1}) == {0, 1, 2}
    service.client.cancel(first.id)
    assert service.assemble()
    target = pq.read_table(service.data_root / "s-out.parquet").to_pylist()
    assert [row["llm_status"] for row in target] == ["success", "error", "success", *["cancelled"] * 5]
    second = submit(service, TEXTS, canary_rows=3, key="k")
    assert second.generation == 2
    assert asked(service) == {1}
    assert service.client.get(second.id).paused == "canary"
    service.client.resume(second.id)
    assert asked(service) == {3, 4, 5, 6, 7}
    assert {row["llm_status"] for row in completed(service, second)} == {"success"}


def test_a_retry_of_what_failed_has_no_canary(service: RunningService) -> None:
    batch = submit(service, TEXTS, canary_rows=3)
    asked(service)
    service.client.resume(batch.id)
    asked(service, failing={5})
    completed(service, batch)
    again = service.client.retry(batch.id)
    assert service.plan()
    assert (service.client.get(again.id).canary_rows, asked(service)) == (None, {5})


def test_a_canary_that_nobody_judges_ends_with_its_batch(service: RunningService) -> None:
    batch = submit(service, TEXTS, canary_rows=3)
    asked(service)
    assert service.client.cancel(batch.id).paused is None
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert ended.manifest is not None
    assert (ended.status, ended.manifest.counts) == ("cancelled", {"success": 3, "cancelled": 5})


def test_what_has_no_rows_to_judge_takes_no_canary(service: RunningService) -> None:
    spec = DatasetSpec(source="s.parquet", target="t.parquet", messages=[Message(role="user", content="{text}")])
    file = service.client.upload_bytes("requests.jsonl", file_of([line(0)]))
    window = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for create in (
        BatchCreate(dataset=spec, model="m", dry_run=True, canary_rows=3),
        BatchCreate(input_file_id=file.id, canary_rows=3, **window),
    ):
        with pytest.raises(InvalidRequestError) as refusal:
            service.client.submit(create)
        assert refusal.value.param == "canary_rows"
