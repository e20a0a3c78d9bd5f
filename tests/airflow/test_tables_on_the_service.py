"""Uploaded tables on the real service, from submit to target, without an engine."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from conftest import task_instance

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.sql_source import SQLSource
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow


def operator(**changes: Any) -> BatchLLMOperator:
    rows = [{"text": "{{ a }}", "n": 1}, {"text": "b", "n": None}, {"text": "b", "n": 3}]
    arguments = {"source": rows, "target": "out.parquet", "model": "m", "prompt": "{text}?", "inline_wait": 0.0}
    return BatchLLMOperator(task_id="t", retries=2, **{**arguments, **changes})


def submitted(ti: Any = None, **changes: Any) -> tuple[BatchLLMOperator, str]:
    task = operator(**changes)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": ti or task_instance()})
    return task, str(deferral.value.trigger.batch_id)


def work(connected: Any) -> None:
    while connected.plan():
        pass
    AnsweringWorker(connected).work()
    while connected.assemble():
        pass


@pytest.mark.parametrize("target", ["out.parquet", "out.jsonl.gz", "out/"])
def test_rows_of_a_dag_become_a_target(target: str, connected: Any) -> None:
    task, batch_id = submitted(target=target)
    work(connected)
    manifest = task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id, "status": "completed"})
    assert manifest["counts"] == {"success": 3}
    rows = list(connected.client.results(batch_id))
    assert [(row["text"], row["n"], row["llm_status"]) for row in rows] == [
        ("{{ a }}", 1, "success"),
        ("b", None, "success"),
        ("b", 3, "success"),
    ]


def test_a_query_of_several_files_becomes_one_target(
    connected: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", postgres)
    query = SQLSource("warehouse", "select * from reviews order by id", rows_per_file=4)
    task, batch_id = submitted(source=query)
    work(connected)
    assert task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id, "status": "completed"})["rows"] == 10
    assert pq.read_table(connected.data_root / "out.parquet")["id"].to_pylist() == list(range(10))


def test_a_cancelled_batch_of_uploaded_rows_goes_on_from_what_was_done(connected: Any) -> None:
    _, first = submitted()
    connected.plan()
    connected.client.cancel(first)
    work(connected)
    task, second = submitted()
    assert connected.client.get(second).generation == 2
    work(connected)
    assert task.execute_complete({"ti": task_instance()}, {"batch_id": second, "status": "completed"})["counts"] == {
        "success": 3
    }


def test_a_retry_asks_for_the_failed_rows_alone_and_then_succeeds(connected: Any) -> None:
    task, first = submitted(max_errors=0, reuse="never")
    connected.plan()
    assert AnsweringWorker(connected, failing={1, 2}).work() == 3
    connected.assemble()
    with pytest.raises(
        AirflowException, match=r"2 of 3 rows of batch .* failed .66.7%., and max_errors is 0"
    ) as failure:
        task.execute_complete({"ti": task_instance()}, {"batch_id": first, "status": "completed"})
    assert "Row 1: error, " in str(failure.value)
    assert str(connected.data_root / "out.parquet") in str(failure.value)
    ti = task_instance()
    again, second = submitted(ti, max_errors=0, reuse="never")
    batch = connected.client.get(second)
    assert (batch.generation, batch.holder, second != first) == (2, str(ti.id), True)
    connected.plan()
    assert AnsweringWorker(connected).work() == 2
    connected.assemble()
    result = again.execute_complete({"ti": task_instance()}, {"batch_id": second, "status": "completed"})
    assert result["counts"] == {"success": 3}


def test_a_retry_that_asks_for_the_failed_rows_alone_is_paused_unwatched_as_well(connected: Any) -> None:
    limits = {"max_errors": 0, "reuse": "never", "pause_unwatched_after": timedelta(hours=1)}
    submitted(**limits)
    connected.plan()
    AnsweringWorker(connected, failing={1}).work()
    connected.assemble()
    ti = task_instance()
    _, second = submitted(ti, **limits)
    batch = connected.client.get(second)
    assert (batch.generation, batch.holder, batch.pause_unwatched_after) == (2, str(ti.id), 3600)


def test_answers_that_do_not_fit_break_a_limit_of_their_own_and_count_as_failed_too(connected: Any) -> None:
    limits = {"max_invalid_rate": 0.5, "max_error_rate": 0.7}
    task, first = submitted(choices=["a", "b"], reuse="never", quarantine="bad.parquet", **limits)
    connected.plan()
    AnsweringWorker(connected, failing={0}, invalid={2}).work()
    connected.assemble()
    result = task.execute_complete(
        {"ti": task_instance()}, {"batch_id": first, "status": "completed"}
    )  # 1 of 3 invalid, 2 of 3 failed
    assert result["counts"] == {"error": 1, "invalid_output": 1, "success": 1}
    assert (result["quarantine"]["uri"], result["quarantine"]["rows"]) == (str(connected.data_root / "bad.parquet"), 2)
    strict = operator(choices=["a", "b"], max_error_rate=0.7, max_invalid_rate=0.2)
    with pytest.raises(AirflowException, match=r"1 of 3 rows of batch .* have an answer that does not fit") as failure:
        strict.execute_complete({"ti": task_instance()}, {"batch_id": first, "status": "completed"})
    said = str(failure.value)
    assert "(33.3%), and max_invalid_rate is 0.2. Row 2: invalid_output, not_a_choice. The answer is none of" in said
    assert "Row 0" not in said
    assert f"and the failed ones alone in {connected.data_root / 'bad.parquet'}. A retry asks for" in said
    with pytest.raises(AirflowException, match=r"2 of 3 rows of batch .* failed .66.7%., and max_error_rate is 0.6"):
        operator(max_error_rate=0.6).execute_complete(
            {"ti": task_instance()}, {"batch_id": first, "status": "completed"}
        )


def test_a_retry_after_too_many_answers_that_do_not_fit_asks_for_those_again(connected: Any) -> None:
    spec = {"choices": ["a", "b"], "reuse": "never", "max_invalid_rate": 0.0, "quarantine": "bad.parquet"}
    _, first = submitted(**spec)
    connected.plan()
    AnsweringWorker(connected, invalid={2}).work()
    connected.assemble()
    task, second = submitted(**spec)
    assert (connected.client.get(second).generation, second != first) == (2, True)
    connected.plan()
    assert AnsweringWorker(connected).work() == 1
    connected.assemble()
    result = task.execute_complete({"ti": task_instance()}, {"batch_id": second, "status": "completed"})
    assert (result["counts"], result["quarantine"]["rows"]) == ({"success": 3}, 0)


def test_a_request_file_with_too_many_failed_requests_breaks_its_budget(connected: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    same = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = b"".join(json.dumps({"custom_id": f"r{row}", **same}).encode() + b"\n" for row in range(4))
    file = connected.client.upload_bytes("requests.jsonl", lines)
    table = dict.fromkeys(["source", "target", "model", "prompt"])
    task, batch_id = submitted(**table, input_file_id=file.id, max_error_rate=0.1)
    connected.plan()
    AnsweringWorker(connected, failing={2}).work()
    connected.assemble()
    with pytest.raises(AirflowException, match=r"1 of 4 rows .* max_error_rate is 0.1") as failure:
        task.execute_complete({"ti": task_instance()}, {"batch_id": batch_id, "status": "completed"})
    assert "Row 2: error, http_4" in str(failure.value)
    assert "row 2 is refused" not in str(failure.value)  # it may repeat the prompt
    _, second = submitted(**table, input_file_id=file.id, max_error_rate=0.1)
    assert connected.client.get(second).generation == 2
    work(connected)
    assert connected.client.get(second).request_counts.failed == 0
