"""The operator with request files: on our service without its extensions, and on servers of others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout, TaskDeferred
from conftest import task_instance
from foreign_server import ForeignServer, running_foreign_server

from airflow_batch_llm.client.plain_server import KEY
from airflow_batch_llm.client.texts import progress_line
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger
from tests.conftest import eventually

pytestmark = pytest.mark.airflow

CANCELLED = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
DAYS = 86_400
REQUESTS = b"".join(
    json.dumps(
        {
            "custom_id": f"row-{row}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "tiny", "messages": [{"role": "user", "content": str(row)}]},
        }
    ).encode()
    + b"\n"
    for row in range(3)
)


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return dataclasses.replace(settings, extensions=False)


@pytest.fixture
def input_file_id(connected: Any) -> str:
    return str(connected.client.upload_bytes("requests.jsonl", REQUESTS).id)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForeignServer]:
    with running_foreign_server() as server:
        connect(monkeypatch, server.url)
        monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.SETTLE", timedelta(0))
        yield server


def connect(monkeypatch: pytest.MonkeyPatch, url: str, **extra: Any) -> None:
    connection = {"conn_type": "batch_llm", "host": f"{url}/v1", "password": "sk-1", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))


def operator(**changes: Any) -> BatchLLMOperator:
    return BatchLLMOperator(task_id="classify", **{"input_file_id": "file-1", "inline_wait": 0.0, **changes})


def table(**changes: Any) -> BatchLLMOperator:
    columns = {"source": "in.parquet", "target": "out.parquet", "model": "tiny", "prompt": "{text}?"}
    return operator(**{"input_file_id": None, **columns, **changes})


def deferred(**changes: Any) -> tuple[BatchLLMOperator, TaskDeferred]:
    task = operator(**changes)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": task_instance()})
    return task, deferral.value


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_file_id": None}, "one of the two, and not both"),
        ({"source": "in.parquet"}, "one of the two, and not both"),
        ({"input_file_id": " "}, "input_file_id is empty"),
        ({"target": "out.parquet"}, "target goes with source"),
        ({"model": "tiny"}, "model goes with source"),
        ({"prompt": "x"}, "prompt goes with source"),
        ({"messages": []}, "messages goes with source"),
        ({"system_prompt": "x"}, "system_prompt goes with source"),
        ({"constants": {}}, "constants goes with source"),
        ({"choices": ["a", "b"]}, "choices goes with source"),
        ({"passthrough": []}, "passthrough goes with source"),
        ({"overwrite": True}, "overwrite goes with source"),
        ({"max_tokens": 1}, "max_tokens goes with source"),
        ({"temperature": 0.0}, "temperature goes with source"),
        ({"top_p": 1.0}, "top_p goes with source"),
        ({"seed": 0}, "seed goes with source"),
        ({"parameters": {}}, "parameters goes with source"),
        ({"completion_window": "soon"}, "completion_window is 'soon'"),
        ({"metadata": {KEY: "x"}}, "its own key"),
        ({"metadata": {"team": "x" * 513}}, "at most 512"),
        ({"metadata": {str(number): "" for number in range(16)}}, "at most 15"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_of_a_request_file_fails_at_parse(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        operator(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": None}, "target is missing"),
        ({"model": None}, "model is missing"),
        ({"endpoint": "/v1/responses"}, "a table is for /v1/chat/completions or /v1/embeddings"),
        ({"source": "file-abc123"}, "given as input_file_id"),
    ],
)
def test_a_table_has_a_target_and_a_model(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        table(**changes)


def test_a_request_file_on_a_service_without_extensions_is_a_batch(connected: Any, input_file_id: str) -> None:
    _, deferral = deferred(input_file_id=input_file_id, metadata={"team": "reviews"})
    batch = connected.client.get(deferral.trigger.batch_id)
    assert (batch.input_file_id, batch.endpoint, batch.completion_window) == (
        input_file_id,
        "/v1/chat/completions",
        "24h",
    )
    assert batch.metadata == {"team": "reviews", KEY: batch.metadata[KEY]}
    assert batch.metadata[KEY].endswith("reviews/classify/manual__1/-1/2")
    assert deferral.trigger.holder is None


def test_a_retry_on_a_service_without_extensions_finds_its_batch(connected: Any, input_file_id: str) -> None:
    _, first = deferred(input_file_id=input_file_id)
    _, retry = deferred(input_file_id=input_file_id)
    assert retry.trigger.batch_id == first.trigger.batch_id


def test_a_table_on_a_service_without_extensions_is_refused_before_anything_is_submitted(connected: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"OpenAI's batch API only.*batch-llm serve.*Nothing was") as failure:
        table(source="reviews.parquet").execute({"ti": task_instance()})
    assert connected.url in str(failure.value)
    assert connected.client.list().data == []


def test_a_priority_on_a_service_without_extensions_is_refused(connected: Any, input_file_id: str) -> None:
    with pytest.raises(AirflowFailException, match="priority=5"):
        operator(input_file_id=input_file_id, priority=5).execute({"ti": task_instance()})
    assert connected.client.list().data == []


@pytest.mark.parametrize("rendered", ["", " ", 7])
def test_a_file_id_that_is_rendered_to_nothing_is_refused(rendered: Any, connected: Any) -> None:
    task = operator(input_file_id="{{ params.file_id }}")
    task.input_file_id = rendered
    with pytest.raises(AirflowFailException, match="names no file"):
        task.execute({"ti": task_instance()})
    assert connected.client.list().data == []


def test_a_killed_task_cancels_its_batch_without_a_holder(connected: Any, input_file_id: str) -> None:
    task, deferral = deferred(input_file_id=input_file_id)
    task.on_kill()
    assert connected.client.get(deferral.trigger.batch_id).status in CANCELLED


def test_a_deferral_that_timed_out_finds_its_batch_by_the_metadata(connected: Any, input_file_id: str) -> None:
    _, deferral = deferred(input_file_id=input_file_id)
    newer = operator(input_file_id=input_file_id, wait_for_completion=False).execute({"ti": task_instance(task_id="t")})
    with pytest.raises(TaskDeferralTimeout, match=f"{deferral.trigger.batch_id}.*retry submits it anew"):
        operator().resume_execution("__fail__", {"error": "Trigger timeout"}, {"ti": task_instance()})
    assert connected.client.get(deferral.trigger.batch_id).status in CANCELLED
    assert connected.client.get(newer).status not in CANCELLED


def test_the_connections_test_says_that_only_openais_api_is_there(connected: Any) -> None:
    works, sentence = operator().hook.test_connection()
    assert works
    assert "tables need `batch-llm serve`" in sentence


def test_only_openais_own_fields_are_sent_to_others(foreign: ForeignServer) -> None:
    deferred(endpoint="/v1/embeddings", completion_window="1h")
    [(_, body)] = foreign.bodies
    key = json.loads(body)["metadata"][KEY]
    assert json.loads(body) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/embeddings",
        "completion_window": "1h",
        "metadata": {KEY: key},
    }


@pytest.mark.parametrize("status", ["queued", "validating", "in_progress", "finalizing", "completed", "PAUSED"])
def test_a_retry_reattaches_to_what_lives_or_completed(status: str, foreign: ForeignServer) -> None:
    _, first = deferred()
    foreign.batches[0]["status"] = status
    again = operator(wait_for_completion=False).execute({"ti": task_instance()})
    assert again == first.trigger.batch_id


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled", "canceled", "cancelling"])
def test_a_retry_submits_anew_what_ended_badly(status: str, foreign: ForeignServer) -> None:
    _, first = deferred()
    foreign.batches[0]["status"] = status
    _, retry = deferred()
    assert retry.trigger.batch_id != first.trigger.batch_id
    foreign.batches[0]["status"] = "in_progress"
    _, third = deferred()
    assert third.trigger.batch_id == retry.trigger.batch_id


@pytest.mark.parametrize("change", [{"input_file_id": "file-2"}, {"endpoint": "/v1/embeddings"}], ids=str)
@pytest.mark.parametrize(("status", "after"), [("in_progress", "canceling"), ("completed", "completed")])
def test_a_retry_for_another_file_or_endpoint_replaces_the_batch(
    status: str, after: str, change: dict[str, str], foreign: ForeignServer
) -> None:
    _, first = deferred()
    foreign.batches[0]["status"] = status
    with pytest.raises(AirflowFailException, match="Nothing was submitted"):
        operator(on_changed="fail", **change).execute({"ti": task_instance()})
    assert [batch["status"] for batch in foreign.batches] == [status]
    _, retry = deferred(**change)
    assert retry.trigger.batch_id != first.trigger.batch_id
    assert [batch["status"] for batch in foreign.batches][1] == after


def test_a_cleared_task_submits_anew(foreign: ForeignServer) -> None:
    deferred()
    operator(wait_for_completion=False).execute({"ti": task_instance(max_tries=9)})
    assert len(foreign.batches) == 2


@pytest.mark.parametrize(("others", "found"), [(0, True), (250, True), (499, True), (500, False)])
def test_a_retry_looks_through_the_newest_500(others: int, found: bool, foreign: ForeignServer) -> None:
    deferred()
    newer = [{**foreign.batches[0], "id": f"other-{number}", "metadata": None} for number in range(others)]
    foreign.batches[:0] = newer
    deferred()
    assert len(foreign.batches) == others + (1 if found else 2)


def test_a_retry_does_not_look_further_back_than_30_days(foreign: ForeignServer) -> None:
    deferred()
    foreign.batches[0]["created_at"] = 1_700_000_000
    deferred()
    assert len(foreign.batches) == 2


@pytest.mark.parametrize("status", [404, 400, 429, 500, 302])
def test_a_list_that_cannot_be_read_is_not_an_empty_one(status: int, foreign: ForeignServer) -> None:
    foreign.refusals["GET", "batches"] = (status, {}, b'{"detail": "no such thing"}')
    with pytest.raises(NoAnswerError, match="no such thing"):
        operator().execute({"ti": task_instance()})
    assert foreign.bodies == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b'{"error": "the file is gone"}', "the file is gone"),
        (b'{"error": {"message": "the file is gone"}}', "the file is gone"),
        (b'{"detail": [{"loc": ["input_file_id"], "msg": "gone"}]}', "input_file_id"),
        (b"<html>\n the file  is gone </html>", "the file is gone"),
        (b"the file is gone", "the file is gone"),
    ],
)
def test_a_refusal_in_any_form_fails_without_retries(answer: bytes, sentence: str, foreign: ForeignServer) -> None:
    foreign.refusals["POST", "batches"] = (422, {}, answer)
    with pytest.raises(AirflowFailException, match=sentence):
        operator().execute({"ti": task_instance()})


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "17"}), (503, {"Retry-After": "17"})])
def test_a_server_that_asks_for_patience_may_be_asked_again(
    status: int, headers: dict[str, str], foreign: ForeignServer
) -> None:
    foreign.refusals["POST", "batches"] = (status, headers, b"slow down")
    with pytest.raises(NoAnswerError, match="17"):
        operator().execute({"ti": task_instance()})


def test_a_404_that_no_batch_service_gives_is_no_proof_that_the_batch_is_gone(foreign: ForeignServer) -> None:
    foreign.refusals["GET", "batches"] = (404, {}, b"<html>default backend</html>")
    with operator().hook.get_conn() as client, pytest.raises(NoAnswerError, match=r"Is http.*default backend"):
        client.get("0b5e-0")


@pytest.mark.parametrize(
    ("shape", "result"),
    [
        ({}, (None, None)),
        ({"output_file_id": "", "error_file_id": "file-e", "request_counts": None, "usage": None}, (None, "file-e")),
        (
            {
                "output_file_id": "file-o",
                "errors": {"data": [{"message": None, "line": 3}]},
                "usage": {"prompt_tokens": 1, "input_tokens": None},
                "metadata": {"n": 1},
                "in_progress_at": 1_789_000_000.5,
                "object": "vllm-batch",
            },
            ("file-o", None),
        ),
    ],
    ids=["absent fields", "nulls and empty ids", "own shapes"],
)
def test_a_completed_batch_in_another_servers_shape_gives_its_files(
    shape: dict[str, Any], result: tuple[str | None, str | None], foreign: ForeignServer
) -> None:
    foreign.shape = {**shape, "status": "completed"}
    given = operator().execute({"ti": task_instance()})
    assert (given["output_file_id"], given["error_file_id"]) == result
    assert given["batch_id"] == given["id"] == "0b5e-0"
    assert given["status"] == "completed"
    assert set(given) == {
        *("batch_id", "id", "status", "output_file_id", "error_file_id", "request_counts", "usage"),
    }


def test_a_batch_that_expired_elsewhere_says_where_its_rows_are_and_that_a_retry_starts_anew(
    foreign: ForeignServer,
) -> None:
    _, deferral = deferred()
    counts = {"total": 9, "completed": 4, "failed": 5}
    foreign.batches[0] |= {"status": "expired", "output_file_id": "file-o", "request_counts": counts}
    with pytest.raises(AirflowException, match=r"4 of 9 rows.*output file file-o.*submits it anew"):
        operator().execute_complete(
            {"ti": task_instance()}, {"batch_id": deferral.trigger.batch_id, "status": "expired"}
        )


async def test_a_trigger_follows_a_batch_through_words_that_it_does_not_know(foreign: ForeignServer) -> None:
    foreign.shape = {"status": "warming_up"}
    foreign.answer("POST", "/v1/batches", b"{}")
    batch = foreign.batches[0]

    async def follow() -> list[Any]:
        trigger = BatchLLMTrigger("batch_llm_default", batch["id"], poll_interval=0.05)
        return [event.payload async for event in trigger.run()]

    async with asyncio.timeout(20):
        following = asyncio.create_task(follow())
        await asyncio.to_thread(eventually, lambda: foreign.looks >= 3)
        batch["status"] = "completed"
        assert await following == [{"batch_id": batch["id"], "status": "completed"}]


def test_the_progress_of_a_batch_elsewhere_is_made_of_its_counts(foreign: ForeignServer) -> None:
    foreign.shape = {"status": "in_progress", "request_counts": {"total": 8, "completed": 1, "failed": 1}}
    batch_id = operator(wait_for_completion=False).execute({"ti": task_instance()})
    with operator().hook.get_conn() as client:
        assert progress_line(client.get(batch_id)) == f"Batch {batch_id} is in_progress, 2 of 8 rows (25%), 1 failed"


def test_a_cancel_elsewhere_has_no_body(foreign: ForeignServer) -> None:
    task, _ = deferred()
    task.on_kill()
    assert foreign.bodies[-1] == ("/v1/batches/0b5e-0/cancel", b"")
    trigger = BatchLLMTrigger("batch_llm_default", "0b5e-0", cancel_on_kill=True)
    asyncio.run(trigger._cancel())
    assert foreign.bodies[-1] == ("/v1/batches/0b5e-0/cancel", b"")


def test_a_trigger_stored_by_an_older_version_still_loads() -> None:
    """Nobody but our service has holders, so it says without saying so whose batch it is."""
    stored = {"conn_id": "c", "batch_id": "b", "holder": "try-1", "poll_interval": 5.0, "cancel_on_kill": True}
    later = {"gated": False, "progress_xcom": False, "shared": True}
    assert BatchLLMTrigger(**stored).serialize()[1] == stored | later
    assert BatchLLMTrigger(**stored | {"holder": None}).serialize()[1]["shared"] is False


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_sensor_waits_for_a_batch_of_another_server(deferrable: bool, foreign: ForeignServer) -> None:
    foreign.shape = {"status": "completed", "output_file_id": "file-o"}
    batch_id = operator(wait_for_completion=False).execute({"ti": task_instance()})
    result = BatchLLMSensor(task_id="wait", batch_id=batch_id, deferrable=deferrable).execute({})
    assert result["output_file_id"] == "file-o"


def test_a_connection_can_say_that_a_service_behind_a_proxy_has_extensions(
    connected: Any, foreign: ForeignServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, foreign.url, extensions="true")
    _, deferral = deferred(priority=5)
    assert json.loads(foreign.bodies[0][1])["priority"] == 5
    assert deferral.trigger.holder is not None
    connect(monkeypatch, foreign.url, extensions="perhaps")
    with pytest.raises(ValueError, match="true or false"):
        operator().execute({"ti": task_instance()})
