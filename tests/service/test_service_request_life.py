"""The life of a batch of a request file: submitted once, cancelled, expired, done again, shown."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from airflow_batch_llm.service.file_planner import FilePlanner
from airflow_batch_llm.service.result_files import ResultFiles
from airflow_batch_llm.settings import Limits
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES_IF_WHOLE
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, finish, line, lines_of, openai_client

pytestmark = BOTH_STORES_IF_WHOLE

HELLO = file_of(line(number) for number in range(10))
OTHER = file_of(line(number) for number in range(3))


@pytest.fixture
def client(service: RunningService) -> Iterator[OpenAI]:
    with openai_client(service) as opened:
        yield opened


def submit(client: OpenAI, content: bytes = HELLO, **more: Any) -> Any:
    return create(client, content, **more)


def refused(client: OpenAI, **body: Any) -> tuple[int, str | None, str | None, str]:
    with pytest.raises(openai.APIStatusError) as error:
        client.batches.create(**body)
    problem: Any = error.value.body
    return error.value.status_code, problem["code"], problem["param"], problem["message"]


def test_a_submit_that_cannot_be_run_is_refused_with_the_field(service: RunningService, client: OpenAI) -> None:
    file_id = client.files.create(file=("x", HELLO), purpose="batch").id
    good = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    table: list[tuple[dict[str, Any], int, str, str]] = [
        ({"input_file_id": "file-nope"}, 404, "file_not_found", "input_file_id"),
        ({"endpoint": "/v1/nope"}, 400, "endpoint_not_supported", "endpoint"),
        ({"completion_window": "1w"}, 400, "invalid_request", "completion_window"),
        ({"completion_window": "0h"}, 400, "invalid_request", "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, 400, "invalid_request", "metadata"),
        ({"metadata": {"k" * 65: "x"}}, 400, "invalid_request", "metadata." + "k" * 65 + ".[key]"),
        ({"metadata": {"k": "x" * 513}}, 400, "invalid_request", "metadata.k"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            400,
            "invalid_request",
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            400,
            "invalid_request",
            "output_expires_after.anchor",
        ),
        ({"extra_body": {"nope": 1}}, 400, "invalid_request", "nope"),
        ({"extra_body": {"deadline": 1000}}, 400, "deadline_passed", "deadline"),
        ({"extra_body": {"model": "m"}}, 400, "invalid_request", "model"),
        ({"extra_body": {"key": "a"}, "extra_headers": {"Idempotency-Key": "b"}}, 400, "key_mismatch", "key"),
    ]
    for wrong, status, code, param in table:
        found = refused(client, **good | wrong)
        assert found[:3] == (status, code, param), found
    for name in ("endpoint", "completion_window"):
        body = {key: value for key, value in good.items() if key != name}
        headers = {"Authorization": f"Bearer {service.token}"}
        answer = httpx.post(f"{service.url}/v1/batches", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert client.batches.list().data == []


def test_creates_within_an_hour_are_limited_and_the_limit_and_the_count_are_named(
    service: RunningService, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = dataclasses.replace(service.settings, limits=Limits(creates_per_hour=2))
    object.__setattr__(service.state, "settings", limited)
    try:
        batches = [submit(client) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 batches within an hour, and the limit is 2"):
            submit(client)
        assert len(batches) == 2
    finally:
        object.__setattr__(service.state, "settings", service.settings)


def test_an_idempotency_key_gives_one_batch(client: OpenAI) -> None:
    headers = {"Idempotency-Key": "once"}
    first = submit(client, extra_headers=headers)
    assert submit(client, extra_headers=headers).id == first.id, "another upload of the same content"
    assert submit(client, extra_body={"key": "once"}).id == first.id
    with pytest.raises(openai.ConflictError, match=r"another spec"):
        submit(client, OTHER, extra_headers=headers)
    assert submit(client).id != first.id


def test_a_key_in_the_metadata_counts_with_the_content_and_never_conflicts(
    service: RunningService, client: OpenAI
) -> None:
    noted = {"metadata": {"idempotency_key": "k", "input_fingerprint": "f"}}
    first = submit(client, **noted)
    assert submit(client, **noted).id == first.id
    other = submit(client, OTHER, **noted)
    assert other.id != first.id
    finish(service)
    assert submit(client, **noted).id == first.id, "one that completed is found as well"


def test_a_cancel_in_the_middle_accounts_for_every_row(service: RunningService, client: OpenAI) -> None:
    batch = submit(client)
    service.plan()
    worker = AnsweringWorker(service, failing={2})
    claim, lines = worker.claim()  # type: ignore[misc]
    lines.sort(key=lambda row: row.row)
    worker.link.extend(claim, [worker.store(claim, 0, lines[:4])])
    assert client.batches.cancel(batch.id).status == "cancelling"
    assert worker.link.extend(claim, [worker.store(claim, 1, lines[4:5])]).stop
    worker.link.release(claim, [], outcome="stopped")
    assert client.batches.retrieve(batch.id).finalizing_at is not None
    service.assemble()
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.model_dump() == {"total": 10, "completed": 4, "failed": 1}
    assert [row["custom_id"] for row in lines_of(client, batch.output_file_id)] == ["row-0", "row-1", "row-3", "row-4"]
    errors = lines_of(client, batch.error_file_id)
    assert [row["custom_id"] for row in errors] == ["row-2", *(f"row-{number}" for number in range(5, 10))]
    assert {(row["error"]["code"], row["response"]) for row in errors[1:]} == {("batch_cancelled", None)}


def test_a_batch_whose_time_is_up_delivers_what_was_done_and_says_what_was_not(
    service: RunningService, client: OpenAI
) -> None:
    batch = submit(client, extra_body={"deadline": int(time.time()) + 3600})
    assert batch.expires_at == batch.deadline
    service.plan()
    worker = AnsweringWorker(service)
    claim, lines = worker.claim()  # type: ignore[misc]
    lines.sort(key=lambda row: row.row)
    worker.link.extend(claim, [worker.store(claim, 0, lines[:6])])
    _time_is_up(service, batch.id)
    service.state.life.expire_due()
    assert client.batches.retrieve(batch.id).status == "finalizing"
    assert worker.link.extend(claim, [worker.store(claim, 1, lines[6:7])]).stop
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.expired_at is not None, batch.finalizing_at is not None) == ("expired", True, True)
    assert batch.request_counts.model_dump() == {"total": 10, "completed": 7, "failed": 0}
    assert len(lines_of(client, batch.output_file_id)) == 7
    assert {row["error"]["code"] for row in lines_of(client, batch.error_file_id)} == {"batch_expired"}


def test_a_batch_whose_time_is_up_before_it_is_planned_still_accounts_for_every_row(
    service: RunningService, client: OpenAI
) -> None:
    batch = submit(client, completion_window="1m")
    assert batch.expires_at == batch.created_at + 60
    _time_is_up(service, batch.id)
    service.plan()
    service.assemble()
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id) == ("expired", None)
    assert len(lines_of(client, batch.error_file_id)) == batch.request_counts.total == 10


def test_the_worker_of_an_expired_batch_that_died_holds_it_up_no_longer_than_its_lease(
    service: RunningService, client: OpenAI
) -> None:
    batch = submit(client)
    service.plan()
    AnsweringWorker(service).claim()
    _time_is_up(service, batch.id)
    service.state.life.expire_due()
    assert not service.assemble()
    from sqlalchemy import text

    with service.state.database.writing() as connection:
        connection.execute(text("UPDATE chunks SET lease_until = 1"))
    service.state.life.settle_ending()
    assert service.assemble()
    assert client.batches.retrieve(batch.id).status == "expired"


def test_a_retry_asks_for_what_failed_alone_and_keeps_the_rest(service: RunningService, client: OpenAI) -> None:
    batch = submit(client)
    finish(service, failing={1, 4})
    first = client.batches.retrieve(batch.id)
    again = service.client.retry(batch.id)
    assert (again.generation, again.key) == (2, batch.id)
    assert service.client.retry(batch.id).id == again.id, "said twice it opens one"
    service.plan()
    worker = AnsweringWorker(service)
    claim, lines = worker.claim()  # type: ignore[misc]
    assert [row.row for row in lines] in ([1, 4], [4, 1])
    worker.link.commit(claim, [worker.store(claim, 0, lines)])
    service.assemble()
    done = client.batches.retrieve(again.id)
    assert (done.status, done.error_file_id) == ("completed", None)
    assert [row["custom_id"] for row in lines_of(client, done.output_file_id)] == [f"row-{n}" for n in range(10)]
    assert client.batches.retrieve(batch.id).model_dump() == first.model_dump(), "an old generation is never rewritten"


@pytest.mark.parametrize("how", ["all succeeded", "not ended", "failed", "superseded", "file deleted"])
def test_a_retry_of_what_cannot_be_done_again_is_refused(service: RunningService, client: OpenAI, how: str) -> None:
    batch = submit(client, b"{" if how == "failed" else HELLO)
    if how != "not ended":
        finish(service, failing=() if how == "all succeeded" else {1})
    if how == "superseded":
        service.client.retry(batch.id)
        finish(service, failing={1})
    if how == "file deleted":
        client.files.delete(batch.input_file_id)
    code = {
        "all succeeded": "nothing_to_retry",
        "not ended": "not_retryable",
        "failed": "not_retryable",
        "superseded": "superseded",
        "file deleted": "file_not_found",
    }[how]
    with pytest.raises(Exception, match=r"Nothing was submitted|No such file") as error:
        service.client.retry(batch.id)
    assert error.value.code == code  # type: ignore[attr-defined]


def test_a_file_deleted_after_the_plan_does_no_harm(service: RunningService, client: OpenAI) -> None:
    batch = submit(client)
    with pytest.raises(openai.ConflictError):
        client.files.delete(batch.input_file_id)
    service.plan()
    client.files.delete(batch.input_file_id)
    finish(service)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_result_files_go_when_their_time_is_up(service: RunningService, client: OpenAI) -> None:
    batch = submit(client, output_expires_after={"anchor": "created_at", "seconds": 7_200})
    finish(service)
    file = client.files.retrieve(client.batches.retrieve(batch.id).output_file_id)
    assert file.purpose == "batch_output"
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 7_200) <= 1
    default = client.files.retrieve(batch.input_file_id)
    assert default.expires_at == default.created_at + 30 * 86_400


def test_the_list_pages_through_all_batches_newest_first(service: RunningService, client: OpenAI) -> None:
    file_id = client.files.create(file=("x", HELLO), purpose="batch").id
    made = [
        client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h").id
        for _ in range(250)
    ]
    assert [batch.id for batch in client.batches.list(limit=100)] == made[::-1]
    page = client.batches.list(limit=20)
    assert (len(page.data), page.has_more, page.last_id) == (20, True, made[-20])  # type: ignore[attr-defined]


def test_the_object_has_every_field_of_openais(service: RunningService, client: OpenAI) -> None:
    batch = submit(client, metadata={"a": "b"})
    finish(service)
    headers = {"Authorization": f"Bearer {service.token}"}
    shown = httpx.get(f"{service.url}/v1/batches/{batch.id}", headers=headers).json()
    named = {
        *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status"),
        *("output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
        *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "metadata"),
        "usage",
    }
    assert named <= shown.keys()
    assert shown["object"] == "batch"
    assert shown["metadata"] == {"a": "b"}
    times = [shown[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    assert all(isinstance(moment, int) and moment < 1e11 for moment in times), "seconds, not milliseconds"
    assert shown["usage"]["input_tokens"] == shown["usage"]["total_tokens"] == 10
    assert shown["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    assert shown["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


async def test_the_async_client_does_the_same(service: RunningService) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.token, max_retries=0) as client:
        file = await client.files.create(file=("x", HELLO), purpose="batch")
        for _ in range(3):
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        finish(service)
        assert len([one async for one in client.batches.list(limit=1)]) == 3
        done = await client.batches.retrieve(batch.id)
        assert done.status == "completed"
        async with client.files.with_streaming_response.content(done.output_file_id or "") as content:
            assert len([row async for row in content.iter_lines()]) == 10
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_nope")


def test_nothing_is_told_to_a_wrong_key_and_what_is_not_there_is_a_404(service: RunningService, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as error:
        openai_client(service, "wrong").batches.list()
    assert error.value.code == "invalid_api_key"
    for call in (client.batches.retrieve, client.batches.cancel, client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError) as missing:
            call("nope")
        assert missing.value.type == "invalid_request_error"


def _time_is_up(service: RunningService, batch_id: str) -> None:
    from sqlalchemy import text

    with service.state.database.writing() as connection:
        connection.execute(text("UPDATE batches SET expires_at = 1 WHERE id = :id"), {"id": batch_id})
    eventually(lambda: service.client.get(batch_id).expires_at == 1)


def test_a_table_is_found_again_by_the_key_in_the_header_though_its_target_stands(service: RunningService) -> None:
    (service.data_root / "s.csv").write_text("a\nx\n")
    dataset = {"source": "s.csv", "target": "t.csv", "messages": [{"role": "user", "content": "{a}"}]}
    headers = {"Authorization": f"Bearer {service.token}", "Idempotency-Key": "table"}

    def submit_table() -> Any:
        return httpx.post(f"{service.url}/v1/batches", json={"dataset": dataset, "model": "m"}, headers=headers).json()

    first = submit_table()
    finish(service)
    assert (service.data_root / "t.csv").exists()
    assert submit_table()["id"] == first["id"]


@pytest.mark.parametrize("duty", ["plan", "assemble"])
def test_what_a_duty_wrote_for_a_batch_that_was_cancelled_meanwhile_goes(
    service: RunningService, client: OpenAI, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    batch = submit(client)
    if duty == "assemble":
        service.plan()
        AnsweringWorker(service).work()
    place, name = (FilePlanner, "plan") if duty == "plan" else (ResultFiles, "write")
    work = getattr(place, name)

    def cancelled_meanwhile(*arguments: Any, **named: Any) -> Any:
        done = work(*arguments, **named)
        client.batches.cancel(batch.id)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(place, name, cancelled_meanwhile)
        assert getattr(service, duty)()
    while service.assemble():
        pass
    assert client.batches.retrieve(batch.id).status == "cancelled"
    folders = {path.parent.name for path in service.settings.storage_root.rglob("*") if path.is_file()}
    assert folders == ({"files"} if duty == "plan" else {"files", "plan-1", "chunks", "000000", "files-2"})
