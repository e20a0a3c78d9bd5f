"""A service with every extension switched off: OpenAI's API and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import httpx
import openai
import pytest
from pool import free_port

from airflow_batch_llm.wire import OPENAI_BATCH_FIELDS
from tests.conftest import RunningService, running_service
from tests.service.requests import create, file_of, finish, line, lines_of, openai_client

HELLO = file_of(line(number) for number in range(3))


@pytest.fixture
def plain_service(service: RunningService) -> Iterator[RunningService]:
    """Another service over the same store, storage and duties, with its extensions off."""
    settings = dataclasses.replace(service.settings, extensions=False, port=free_port())
    with running_service(dataclasses.replace(service.state, settings=settings), service.token) as running:
        yield running


def test_a_batch_has_openais_fields_and_no_other(plain_service: RunningService) -> None:
    client = openai_client(plain_service)
    batch = create(client, HELLO)
    finish(plain_service)
    headers = {"Authorization": f"Bearer {plain_service.token}"}
    shown = httpx.get(f"{plain_service.url}/v1/batches/{batch.id}", headers=headers).json()
    listed = httpx.get(f"{plain_service.url}/v1/batches?key=x", headers=headers).json()["data"][0]
    assert shown.keys() == listed.keys() == OPENAI_BATCH_FIELDS
    assert shown["status"] == "completed"
    assert len(lines_of(client, shown["output_file_id"])) == 3


@pytest.mark.parametrize("field", ["key", "series", "holder", "priority", "fair_group", "deadline", "dataset", "model"])
def test_what_openai_does_not_know_is_refused_by_name(plain_service: RunningService, field: str) -> None:
    table = {"source": "s.csv", "target": "t.csv", "messages": [{"role": "user", "content": "x"}]}
    values = {"priority": 1, "deadline": 2_000_000_000, "dataset": table}
    with pytest.raises(openai.BadRequestError, match=f"Unknown parameter: '{field}'"):
        create(openai_client(plain_service), HELLO, extra_body={field: values.get(field, "x")})


def test_a_key_in_a_header_is_nothing_there(plain_service: RunningService) -> None:
    client = openai_client(plain_service)
    first, second = (create(client, HELLO, extra_headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.id != second.id


@pytest.mark.parametrize("path", ["results", "events", "retry", "pause", "resume"])
def test_there_are_no_calls_but_openais(plain_service: RunningService, path: str) -> None:
    batch = create(openai_client(plain_service), HELLO)
    headers = {"Authorization": f"Bearer {plain_service.token}"}
    method = "GET" if path in ("results", "events") else "POST"
    answer = httpx.request(method, f"{plain_service.url}/v1/batches/{batch.id}/{path}", headers=headers)
    assert answer.status_code == 404
    assert httpx.get(f"{plain_service.url}/healthz").json()["extensions"] is False
