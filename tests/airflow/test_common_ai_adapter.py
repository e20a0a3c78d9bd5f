"""The pool as a provider of common.ai's batches, through common.ai's own dispatch and against the real service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from airflow.providers.common.ai.batch import dispatch
from airflow.providers.common.ai.batch.output_schema import build_output_spec, validate_extracted_output
from airflow.providers.common.ai.batch.results import assemble_manifest, stream_results_to_jsonl
from airflow.providers.common.ai.exceptions import (
    BatchProviderNotYetSupportedError,
    LLMBatchInputError,
    LLMBatchLimitExceededError,
    LLMBatchModelMismatchError,
)
from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
from airflow.sdk import Connection, ObjectStoragePath
from conftest import task_instance
from pydantic import BaseModel

from airflow_batch_llm.errors import NoAnswerError, NotFoundError
from airflow_batch_llm.hooks import common_ai
from airflow_batch_llm.hooks.common_ai import PoolBatchAdapter
from airflow_batch_llm.hooks.common_ai_rows import result_item
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow

KEY = "0123456789abcdef"
TEXT = build_output_spec(str)


class Label(BaseModel):
    topic: Literal["price", "quality"]


LABEL = build_output_spec(Label)


@pytest.fixture
def adapter(service: Any) -> Any:
    made = dispatch.build_adapter_from_connection("batch_llm", connection(service.url, service.token))
    yield made
    made.close()


def connection(host: str | None, token: str | None = None) -> Connection:
    return Connection(conn_id="pool", conn_type="batch_llm", host=host, password=token)


def submit(adapter: Any, requests: list[Any], **changes: Any) -> Any:
    asked = {"model": "tiny", "idempotency_key": KEY, "input_fingerprint": "f" * 64, "output_spec": TEXT, **changes}
    return adapter.submit(requests, **asked)


def prompts(count: int) -> list[Any]:
    return [{"prompt": f"prompt {number}"} for number in range(count)]


def answer(service: Any, *, failing: Container[int] = ()) -> None:
    while service.plan():
        pass
    AnsweringWorker(service, model="tiny", failing=failing).work()
    while service.assemble():
        pass


def sent(service: Any, batch_id: str) -> list[dict[str, Any]]:
    """The request lines of a batch as the service has them."""
    return [json.loads(line) for line in service.client.file_lines(service.client.get(batch_id).input_file_id)]


def test_a_batch_says_which_task_it_comes_from_where_a_task_submits_it(
    service: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = service.client.get(submit(adapter, prompts(1)).batch_id)
    monkeypatch.setattr(common_ai, "get_current_context", lambda: {"ti": task_instance()})
    inside = service.client.get(submit(adapter, prompts(1), idempotency_key="k").batch_id)
    assert outside.origin is None
    assert inside.origin is not None
    assert (inside.origin.dag_id, inside.origin.task_id, inside.origin.run_id) == ("reviews", "classify", "manual__1")


def test_common_ai_finds_the_adapter_by_its_entry_point() -> None:
    assert dispatch.get_adapter_class("batch_llm", "batch_llm:tiny") is PoolBatchAdapter
    with pytest.raises(BatchProviderNotYetSupportedError, match="batch_llm"):
        dispatch.get_adapter_class("pydanticai", "batch_llm:tiny")


def test_the_operators_work_where_common_ai_is_not_installed() -> None:
    check = (
        "import sys; sys.modules['airflow.providers.common.ai.batch'] = None; "
        "import airflow_batch_llm.operators.batch_llm, airflow_batch_llm.sensors.batch_llm"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://gpu:8765", "http://gpu:8765"),
        ("gpu:8765", "http://gpu:8765"),
        (" https://gpu/v1/ ", "https://gpu"),
    ],
)
def test_the_address_is_the_connections_host(host: str, url: str) -> None:
    assert dispatch.build_adapter_from_connection("batch_llm", connection(host))._client.url == url


@pytest.mark.parametrize("host", [None, " "])
def test_a_connection_without_a_host_is_refused(host: str | None) -> None:
    with pytest.raises(ValueError, match="with the port"):
        dispatch.build_adapter_from_connection("batch_llm", connection(host))


def test_every_request_becomes_a_line_with_what_all_have_in_common(service: Any, adapter: Any) -> None:
    requests = [
        {"prompt": "größer\u2028?"},
        {"prompt": "b", "system_prompt": "own", "max_tokens": 7, "params": {"top_p": 0.5, "model": "evil", "seed": 1}},
    ]
    shared = {"system_prompt": "all", "max_tokens": 99, "request_params": {"top_p": 0.9, "max_tokens": 5}}
    batch_id = submit(adapter, requests, output_spec=LABEL, **shared).batch_id
    first, second = sent(service, batch_id)
    assert (first["custom_id"], first["url"]) == (f"{KEY}-0", "/v1/chat/completions")
    schema = {"name": "Label", "schema": Label.model_json_schema()}
    assert first["body"] == {
        "model": "tiny",
        "top_p": 0.9,
        "messages": [{"role": "system", "content": "all"}, {"role": "user", "content": "größer\u2028?"}],
        "max_completion_tokens": 99,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    assert second["body"]["messages"][0] == {"role": "system", "content": "own"}
    assert (second["body"]["max_completion_tokens"], second["body"]["top_p"]) == (7, 0.5)
    assert second["body"]["model"] == "tiny"


def test_results_come_back_under_their_numbers(service: Any, adapter: Any, tmp_path: Path) -> None:
    batch_id = submit(adapter, prompts(7)).batch_id
    assert adapter.get_batch(batch_id).status == "in_progress"
    answer(service, failing={2, 5})
    state = adapter.get_batch(batch_id)
    assert state.status == "completed"
    assert state.counts == {"succeeded": 5, "errored": 2, "expired": 0, "cancelled": 0}

    counts, diagnostics = stream_results_to_jsonl(
        adapter=adapter,
        batch_id=batch_id,
        output_spec=TEXT,
        request_count=7,
        custom_id_prefix=KEY,
        destination=ObjectStoragePath(f"file://{tmp_path}/rows.jsonl"),
    )
    rows = {row["index"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}
    assert {index: rows[index]["output"] for index in (0, 6)} == {0: "answer 0", 6: "answer 6"}
    assert rows[2]["error"]["message"] == "row 2 is refused"
    assert rows[2]["error"]["provider_code"] == "400"
    assert rows[0]["usage"] == {"input_tokens": 1, "output_tokens": 0}
    assert rows[0]["finish_reason"] == "stop"
    manifest = assemble_manifest(
        batch_id=batch_id,
        adapter_name="batch_llm",
        llm_conn_id="pool",
        model_id="batch_llm:tiny",
        output_spec=TEXT,
        result_uri="",
        request_count=7,
        merge_counts=counts,
        merge_diagnostics=diagnostics,
        custom_id_prefix=KEY,
        submitted_at="",
        completed_at="",
    )
    assert (manifest["counts"]["succeeded"], manifest["counts"]["errored"]) == (5, 2)
    assert sum(manifest["counts"].values()) == 7


def test_rows_of_a_cancelled_batch_are_cancelled_rows(service: Any, adapter: Any) -> None:
    batch_id = submit(adapter, prompts(3)).batch_id
    adapter.cancel_batch(batch_id)
    answer(service)
    assert adapter.get_batch(batch_id).status == "cancelled"
    assert {item.provider_status for item in adapter.iter_results(batch_id)} <= {"cancelled"}


def test_a_file_that_cannot_run_is_a_failed_batch_that_says_why(service: Any, adapter: Any) -> None:
    batch_id = submit(adapter, prompts(1), request_params={"stream": True}).batch_id
    answer(service)
    state = adapter.get_batch(batch_id)
    assert state.status == "failed"
    assert "stream" in state.error_message


def test_submitting_twice_is_one_batch_and_one_file(service: Any, adapter: Any) -> None:
    first, second = submit(adapter, prompts(2)), submit(adapter, prompts(2))
    assert second == first
    assert len(service.client.list().data) == 1
    listed = httpx.get(f"{service.url}/v1/files", headers={"Authorization": f"Bearer {service.token}"}).json()
    assert [file["id"] for file in listed["data"]] == [first.provider_input_ref]
    assert service.client.file(first.provider_input_ref).filename == f"{KEY}.jsonl"


def test_changed_input_is_another_batch(adapter: Any) -> None:
    first = submit(adapter, prompts(2))
    assert submit(adapter, prompts(3), input_fingerprint="e" * 64).batch_id != first.batch_id


def test_an_orphan_is_found_by_its_key_and_not_before_its_time(adapter: Any) -> None:
    assert adapter.find_orphaned_batch(KEY, "f" * 64, "") is None
    batch_id = submit(adapter, prompts(1)).batch_id
    now = datetime.now(UTC)
    assert adapter.find_orphaned_batch(KEY, "f" * 64, now.isoformat()) == batch_id
    assert adapter.find_orphaned_batch(KEY, "f" * 64, (now + timedelta(hours=1)).isoformat()) is None
    assert adapter.find_orphaned_batch(KEY, "e" * 64, now.isoformat()) is None


def test_an_orphan_that_ended_badly_is_followed_by_its_next_generation(service: Any, adapter: Any) -> None:
    first = submit(adapter, prompts(1)).batch_id
    adapter.cancel_batch(first)
    answer(service)
    second = submit(adapter, prompts(1)).batch_id
    assert second != first
    assert adapter.find_orphaned_batch(KEY, "f" * 64, "") == second


def test_a_service_that_cannot_be_read_is_never_an_absent_batch() -> None:
    adapter = dispatch.build_adapter_from_connection("batch_llm", connection("http://127.0.0.1:9"))
    for call in (lambda: adapter.find_orphaned_batch(KEY, "f", ""), lambda: adapter.get_batch("batch_x")):
        with pytest.raises(NoAnswerError) as failure:
            call()
        assert not LLMBatchOperator._is_not_found_error(failure.value)


@pytest.mark.parametrize("verb", ["get_batch", "cancel_batch", "iter_results"])
def test_a_batch_that_is_gone_is_not_found_in_the_operators_own_terms(verb: str, adapter: Any) -> None:
    with pytest.raises(NotFoundError, match="batch_gone") as failure:
        getattr(adapter, verb)("batch_gone")
    assert LLMBatchOperator._is_not_found_error(failure.value)


def test_too_many_or_too_large_requests_are_refused_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = dispatch.build_adapter_from_connection("batch_llm", connection("http://127.0.0.1:9"))
    asked = {"model": "tiny", "output_spec": TEXT, "idempotency_key": KEY}
    adapter.validate_requests(prompts(3), **asked)
    monkeypatch.setattr(PoolBatchAdapter, "max_payload_bytes", 300)
    with pytest.raises(LLMBatchLimitExceededError, match=r"300 at most.*expand"):
        adapter.validate_requests(prompts(3), **asked)
    monkeypatch.setattr(PoolBatchAdapter, "max_requests", 2)
    with pytest.raises(LLMBatchLimitExceededError, match=r"3 requests.*2 at most.*expand"):
        adapter.validate_requests(prompts(3), **asked)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"prompt": "a", "model": "batch_llm:other"}, LLMBatchModelMismatchError),
        ({"prompt": "a", "model": "openai:tiny"}, LLMBatchModelMismatchError),
        ({"prompt": "\ud800"}, LLMBatchInputError),
    ],
)
def test_a_request_that_fits_no_batch_is_refused_before_any_call(request_: Any, error: type[Exception]) -> None:
    adapter = dispatch.build_adapter_from_connection("batch_llm", connection("http://127.0.0.1:9"))
    with pytest.raises(error, match=r"Request 0|Request 0123456789abcdef-0"):
        adapter.validate_requests([request_], model="tiny", output_spec=TEXT, idempotency_key=KEY)


@pytest.mark.parametrize(
    ("content", "spec", "ok"),
    [('{"topic":"price"}', LABEL, True), ('{"topic":', LABEL, False), ("hello", TEXT, True), (None, TEXT, False)],
)
def test_an_answer_is_judged_by_common_ai(content: str | None, spec: Any, ok: bool, adapter: Any) -> None:
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    line = json.dumps({"custom_id": f"{KEY}-3", "response": {"status_code": 200, "body": body}, "error": None})
    item = result_item(line.encode(), place="here")
    assert item is not None
    assert item.index == 3
    assert validate_extracted_output(adapter.extract_output(item, spec), spec).ok is ok


@pytest.mark.parametrize(
    ("result", "status", "message"),
    [
        ({"response": None, "error": {"code": "batch_expired", "message": "late"}}, "expired", "late"),
        ({"response": None, "error": {"code": "batch_cancelled", "message": "no"}}, "cancelled", "no"),
        ({"response": None, "error": "plain text"}, "errored", "plain text"),
        ({"response": {"status_code": 500, "body": "text"}, "error": None}, "errored", "HTTP 500"),
    ],
)
def test_an_error_line_says_what_became_of_its_request(result: Any, status: str, message: str) -> None:
    item = result_item(json.dumps({"custom_id": "k-1", **result}).encode(), place="here")
    assert item is not None
    assert (item.provider_status, message in item.error["message"]) == (status, True)


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"custom_id": "no number"}'])
def test_a_line_that_cannot_be_read_is_left_out_and_never_quoted(line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert result_item(line, place="line 4 of file file-1") is None
    assert "line 4 of file file-1" in caplog.text
    assert "no number" not in caplog.text
