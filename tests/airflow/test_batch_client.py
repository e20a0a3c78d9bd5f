"""The client against the real service, and what it makes of answers that are not the service's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_server import ForeignServer, running_foreign_server

from airflow_batch_llm.client import batch_client
from airflow_batch_llm.client.answers import checked
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.client.replicas import base_urls
from airflow_batch_llm.errors import ConflictError, NoAnswerError, NotFoundError, RefusedError, UnauthorizedError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.service.answering import answer_all

pytestmark = pytest.mark.airflow


@pytest.fixture
def foreign() -> Iterator[ForeignServer]:
    with running_foreign_server() as server:
        yield server


@pytest.fixture
def answered(service: Any) -> str:
    """A table of seven rows, answered."""
    pq.write_table(pa.table({"text": list("abcdefg")}), service.data_root / "in.parquet")
    dataset = DatasetSpec(source="in.parquet", target="out.parquet", messages=[Message(role="user", content="{text}")])
    batch = service.client.submit(BatchCreate(dataset=dataset, model="m"))
    answer_all(service, batch)
    return str(batch.id)


@pytest.mark.parametrize("url", ["http://gpu", "http://gpu/", "http://gpu/v1", " http://gpu/v1/ "])
def test_an_address_as_written_for_openais_clients_is_the_services(url: str) -> None:
    assert base_urls(url) == [BatchClient(url).url] == ["http://gpu"]


@pytest.mark.parametrize(("limit", "count"), [(None, 7), (1, 1), (3, 3), (6, 6), (7, 7), (99, 7)])
def test_results_come_page_after_page_and_no_more_than_asked_for(
    limit: int | None, count: int, service: Any, answered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_client, "PAGE_ROWS", 3)
    rows = list(service.client.results(answered, limit=limit))
    assert [row["text"] for row in rows] == list("abcdefg")[:count]
    assert [row.row for row in service.client.result_rows(answered, limit=limit)] == list(range(count))


def test_results_of_one_status_are_those_alone(service: Any, answered: str) -> None:
    assert len(list(service.client.results(answered, status="success"))) == 7
    assert list(service.client.results(answered, status="error")) == []


def test_two_submits_under_one_idempotency_key_are_one_batch(service: Any) -> None:
    pq.write_table(pa.table({"text": ["a"]}), service.data_root / "in.parquet")
    dataset = DatasetSpec(source="in.parquet", target="out.parquet", messages=[Message(role="user", content="{text}")])
    create = BatchCreate(dataset=dataset, model="m")
    first, second = (service.client.submit(create, idempotency_key="k") for _ in range(2))
    assert first.id == second.id
    assert service.client.find("k").id == first.id


def test_an_uploaded_file_is_read_line_by_line_and_can_be_deleted(service: Any) -> None:
    content = '{"a":"\u2028"}\n\n{"b":"\r"}'.encode()
    file = service.client.upload_bytes("requests.jsonl", content)
    assert (service.client.file(file.id).filename, file.bytes) == ("requests.jsonl", len(content))
    assert list(service.client.file_lines(file.id)) == content.split(b"\n")
    service.client.delete_file(file.id)
    with pytest.raises(NotFoundError):
        list(service.client.file_lines(file.id))


def test_a_retry_of_a_cancelled_batch_is_a_new_generation(service: Any) -> None:
    pq.write_table(pa.table({"text": ["a"]}), service.data_root / "in.parquet")
    dataset = DatasetSpec(source="in.parquet", target="out.parquet", messages=[Message(role="user", content="{text}")])
    first = service.client.submit(BatchCreate(dataset=dataset, model="m", key="k"))
    service.client.cancel(first.id)
    answer_all(service, first)
    again = service.client.retry(first.id)
    assert (again.id != first.id, again.generation) == (True, first.generation + 1)


def test_our_service_says_what_it_is(service: Any) -> None:
    health = service.client.health()
    assert (health.service, health.extensions) == ("airflow-batch-llm", True)


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"{}"), (401, b""), (200, b"ok"), (200, b'{"status": "ok"}'), (200, b'{"service": "x"}'), (302, b"")],
)
def test_another_server_has_no_health_of_ours(status: int, body: bytes, foreign: ForeignServer) -> None:
    foreign.refusals["GET", "healthz"] = (status, {}, body)
    assert BatchClient(foreign.url).health() is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_health_that_cannot_be_read_is_not_another_server(status: int, foreign: ForeignServer) -> None:
    foreign.refusals["GET", "healthz"] = (status, {}, b"")
    with pytest.raises(NoAnswerError):
        BatchClient(foreign.url).health()


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("canceled", BatchStatus.CANCELLED),
        ("Canceling", BatchStatus.CANCELLING),
        ("COMPLETED", BatchStatus.COMPLETED),
        ("queued", BatchStatus.IN_PROGRESS),
    ],
)
def test_a_word_for_a_status_that_is_not_known_is_a_living_one(
    word: str, status: BatchStatus, foreign: ForeignServer
) -> None:
    foreign.shape = {"status": word}
    foreign.answer("POST", "/v1/batches", b"{}")
    assert BatchClient(foreign.url).get("0b5e-0").status == status


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (400, b'{"error": {"message": "bad", "code": 17}}', RefusedError, "bad"),
        (401, b'{"error": "who are you"}', UnauthorizedError, "who are you"),
        (403, b"<html>Forbidden</html>", UnauthorizedError, "Forbidden"),
        (404, b'{"detail": "no batch"}', NotFoundError, "no batch"),
        (404, b"page not found", NoAnswerError, "Is http://gpu the address"),
        (409, b'{"message": "twice"}', ConflictError, "twice"),
        (422, b"x" * 999, RefusedError, "x" * 300),
        (302, b"", NoAnswerError, "HTTP 302"),
        (429, b"", NoAnswerError, "takes no more calls for now"),
        (502, b"<html>bad gateway</html>", NoAnswerError, "has trouble"),
    ],
)
def test_every_refusal_is_the_error_that_fits(status: int, body: bytes, error: type[Exception], says: str) -> None:
    response = httpx.Response(status, content=body, request=httpx.Request("GET", "http://gpu/v1/batches/b"))
    with pytest.raises(error, match=says) as failure:
        checked(response, "http://gpu")
    assert "x" * 301 not in str(failure.value)
    assert isinstance(failure.value, RefusedError) == (error is not NoAnswerError)
