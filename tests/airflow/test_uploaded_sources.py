"""Sources that the task uploads itself: rows of Python values, and how a retry goes on with what was uploaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from conftest import task_instance
from table_service import TableService, running_table_service

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.inline_rows import json_lines

pytestmark = pytest.mark.airflow

ROWS = [{"text": "{{ good }}", "n": 1}, {"text": "bäd {x}", "n": None}]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[TableService]:
    with running_table_service() as started:
        connection = {"conn_type": "batch_llm", "host": started.url, "password": "t"}
        monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))
        yield started


def operator(**changes: Any) -> BatchLLMOperator:
    arguments = {"source": ROWS, "target": "out.parquet", "model": "tiny", "prompt": "{text}?", "inline_wait": 0.0}
    return BatchLLMOperator(task_id="classify", retries=2, **{**arguments, **changes})


def deferred(ti: Any = None, **changes: Any) -> tuple[BatchLLMOperator, str]:
    task = operator(**changes)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": ti or task_instance()})
    return task, str(deferral.value.trigger.batch_id)


def test_rows_are_uploaded_as_a_dataset_that_expires_and_are_the_source(service: TableService) -> None:
    deferred()
    [batch] = service.batches
    assert batch["dataset"]["source"] == ["file-0"]
    fields, _ = service.files["file-0"]
    assert fields["purpose"] == "dataset"
    assert fields["filename"] == "rows.jsonl"
    assert fields["expires_after[seconds]"] == str(7 * 86_400)
    assert service.uploaded_rows() == ROWS


def test_rows_are_never_taken_for_templates(service: TableService) -> None:
    task = operator(constants={"day": "{{ ds }}"})
    task.render_template_fields({"ds": "2026-11-23"})
    with pytest.raises(TaskDeferred):
        task.execute({"ti": task_instance()})
    assert service.uploaded_rows() == ROWS
    assert service.batches[0]["dataset"]["constants"] == {"day": "2026-11-23"}


@pytest.mark.parametrize("status", ["validating", "in_progress", "completed"])
def test_a_retry_finds_its_batch_before_it_uploads_anything(status: str, service: TableService) -> None:
    _, first = deferred()
    service.batches[0]["status"] = status
    ti = task_instance()
    task = operator(wait_for_completion=False)
    assert task.execute({"ti": ti}) == first
    assert len(service.files) == 1
    assert service.batches[0]["holder"] == str(ti.id)


def test_a_retry_with_other_rows_uploads_and_submits_those(service: TableService) -> None:
    deferred()
    deferred(source=[{"text": "other"}])
    assert [content for _, content in service.files.values()][1:] == [b'{"text": "other"}\n']
    assert (service.submits[-1]["dataset"]["source"], service.submits[-1]["on_changed"]) == (["file-1"], "resubmit")


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_retry_of_a_batch_that_ended_early_goes_on_with_the_same_file(status: str, service: TableService) -> None:
    _, first = deferred()
    service.end(first, status)
    _, second = deferred()
    assert second != first
    assert len(service.files) == 1
    assert service.batches[0]["dataset"]["source"] == ["file-0"]


def test_a_retry_uploads_again_where_the_file_is_gone_and_the_batch_had_ended(service: TableService) -> None:
    _, first = deferred()
    service.end(first, "expired")
    service.files = {"file-x": service.files["file-0"]}
    deferred()
    assert service.batches[0]["dataset"]["source"] == ["file-1"]


def test_a_retry_goes_on_waiting_where_the_file_is_gone_and_the_batch_lives(service: TableService) -> None:
    _, first = deferred()
    held_by = service.batches[0]["holder"]
    service.files.clear()
    task, second = deferred()
    assert second == first
    assert task._held is not None
    assert task._held.holder == held_by


def test_a_retry_that_asks_something_else_uploads_again_where_the_file_is_gone(service: TableService) -> None:
    deferred()
    service.files = {"file-x": service.files["file-0"]}
    deferred(prompt="{text}!")
    assert service.submits[-1]["dataset"]["source"] == ["file-1"]
    assert service.submits[-1]["dataset"]["messages"][0]["content"] == "{text}!"


def test_a_cleared_task_uploads_anew(service: TableService) -> None:
    deferred()
    _, _ = deferred(task_instance(max_tries=5))
    assert [batch["dataset"]["source"] for batch in service.batches] == [["file-1"], ["file-0"]]


@pytest.mark.parametrize(
    ("on_clear", "reuse", "sent"), [("rerun", "auto", "never"), ("reuse", "auto", None), ("reuse", "never", "never")]
)
def test_a_clear_asks_anew_or_reuses(on_clear: str, reuse: str, sent: str | None, service: TableService) -> None:
    deferred(on_clear=on_clear, reuse=reuse)
    assert service.batches[0].get("reuse") == (None if reuse == "auto" else reuse)
    deferred(task_instance(max_tries=5), on_clear=on_clear, reuse=reuse)
    assert service.batches[0].get("reuse") == sent


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"a": 1}, {"a": float("nan")}], "Row 1 of the source has the float nan in column 'a'"),
        ([{"a": {1, 2}}], "Row 0 of the source has a set in column 'a'"),
        ([{"a": [{"b": b"x"}]}], "Row 0 of the source has a bytes in column 'a'"),
        ([{"a": {1: 2}}], "a dict with the key 1"),
        ([{7: 1}], "a column named 7"),
        ([{"a": "\ud800"}], "Row 0 of the source holds text that is no Unicode"),
        ([{"a": 1}, "x"], "Row 1 of the source is a str"),
        ([], "without rows"),
    ],
    ids=repr,
)
def test_rows_that_json_cannot_carry_are_refused_by_row_and_column(rows: list[Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        list(json_lines(rows))


@pytest.mark.parametrize("source", [[], [None], ["a.csv", {"a": 1}], {"a": 1}, 7, [""], "  ", [{"a": b"x"}]], ids=repr)
def test_a_source_that_another_task_gave_is_judged_before_anything_is_submitted(
    source: Any, service: TableService
) -> None:
    task = operator()
    task.source = source
    with pytest.raises(AirflowFailException, match="Nothing was submitted"):
        task.execute({"ti": task_instance()})
    assert service.files == {}
    assert service.batches == []


def test_the_fields_of_a_table_are_sent(service: TableService) -> None:
    deferred(
        source=["a/", "b/*.csv.gz"],
        target="out/",
        format="csv",
        compression="zstd",
        output_type={"type": "object", "properties": {"x": {"type": "string"}}},
        temperature=0.5,
    )
    spec = service.batches[0]["dataset"]
    assert spec["source"] == ["a/", "b/*.csv.gz"]
    assert (spec["target"], spec["format"], spec["compression"]) == ("out/", "csv", "zstd")
    assert spec["output_schema"]["properties"] == {"x": {"type": "string"}}
    assert spec["parameters"] == {"temperature": 0.5}


def test_a_table_for_embeddings_has_an_input_instead_of_messages(service: TableService) -> None:
    deferred(source="in.parquet", endpoint="/v1/embeddings", prompt="{text}")
    create = service.batches[0]
    assert create["endpoint"] == "/v1/embeddings"
    assert (create["dataset"]["input"], create["dataset"].get("messages")) == ("{text}", None)


def test_a_dry_run_needs_no_target_and_gives_its_estimate(
    service: TableService, caplog: pytest.LogCaptureFixture
) -> None:
    task, batch_id = deferred(target=None, dry_run=True)
    batch = service.batches[0]
    assert batch["dry_run"] is True
    assert batch["key"].endswith("/dry-run/2")
    estimate = {"rows": 2, "rows_faulty": 0, "rows_duplicate": 0, "rows_reused": 0, "rows_asked": 2}
    estimate |= {"prompt_tokens": 30, "tokens_from": "tokenized sample", "sample_rows": 2, "completion_tokens": 8}
    batch |= {"status": "completed", "estimate": estimate}
    result = task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id, "status": "completed"})
    assert result == {"batch_id": batch_id, **estimate, "gpu_seconds": None, "cost": None}


def test_a_dry_run_without_an_estimate_fails(service: TableService) -> None:
    task, batch_id = deferred(dry_run=True)
    service.end(batch_id)
    with pytest.raises(AirflowFailException, match="without an estimate"):
        task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id})


def test_rows_that_failed_within_the_budget_do_not_fail_the_task(service: TableService) -> None:
    task, batch_id = deferred(max_error_rate=0.5, max_errors=1)
    service.failing = [(1, "error", "context_length: Too long.")]
    service.end(batch_id)
    assert task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id})["status"] == "completed"


@pytest.mark.parametrize(
    ("budget", "limit"), [({"max_errors": 3}, "max_errors is 3"), ({"max_error_rate": 0.4}, "0.4")]
)
def test_a_broken_budget_fails_the_task_with_counts_and_three_rows(
    budget: dict[str, Any], limit: str, service: TableService
) -> None:
    task, batch_id = deferred(**budget)
    service.failing = [(row, "error", f"context_length: Row {row} is quoted.") for row in (1, 4)]
    service.failing += [(row, "invalid_output", "not_json: quoted") for row in (2, 3, 5)]
    service.end(batch_id, total=10)
    with pytest.raises(AirflowException, match=limit) as failure:
        task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id})
    assert not isinstance(failure.value, AirflowFailException)
    said = str(failure.value)
    assert f"5 of 10 rows of batch {batch_id} failed (50.0%)" in said
    assert "Row 1: error, context_length. Row 4: error, context_length. " in said
    assert "Row 2: invalid_output, not_json. The answer is no JSON. " in said
    assert "Row 3" not in said
    assert "quoted" not in said  # what a row says goes into no log
    assert "A retry asks for the failed rows alone." in said


def test_a_retry_after_a_broken_budget_opens_a_generation_and_waits_for_it(service: TableService) -> None:
    _, first = deferred(max_errors=0)
    service.failing = [(1, "error", "x")]
    service.end(first)
    ti = task_instance()
    _, second = deferred(ti, max_errors=0)
    assert second != first
    assert f"POST /v1/batches/{first}/retry" in service.calls
    assert (service.batches[0]["generation"], service.batches[0]["holder"]) == (2, str(ti.id))
    assert len(service.files) == 1


def test_a_retry_without_a_budget_takes_a_batch_with_failed_rows_as_it_is(service: TableService) -> None:
    _, first = deferred()
    service.failing = [(1, "error", "x")]
    service.end(first)
    assert operator(wait_for_completion=False).execute({"ti": task_instance()}) == first
