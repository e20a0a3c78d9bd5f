"""The connection: its address, its token, its test button."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_batch_llm.hooks.address import ServiceAddress
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook

pytestmark = pytest.mark.airflow


def connect(monkeypatch: pytest.MonkeyPatch, **values: Any) -> BatchLLMHook:
    monkeypatch.setenv("AIRFLOW_CONN_POOL", json.dumps({"conn_type": "batch_llm", **values}))
    return BatchLLMHook("pool")


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({"host": "http://gpu:8765"}, "http://gpu:8765"),
        ({"host": "http://gpu:8765/"}, "http://gpu:8765"),
        ({"host": "http://gpu", "port": 8765}, "http://gpu:8765"),
        ({"host": "gpu", "port": 8765}, "http://gpu:8765"),
        ({"host": "gpu", "port": 443, "schema": "https"}, "https://gpu:443"),
        ({"host": "https://gpu/batch-llm", "port": 8765}, "https://gpu:8765/batch-llm"),
        ({"host": "http://gpu:1", "port": 8765}, "http://gpu:1"),
        ({"host": "http://a:1, http://b:2/v1"}, "http://a:1,http://b:2"),
        ({"host": "a,b", "port": 8765}, "http://a:8765,http://b:8765"),
    ],
    ids=str,
)
def test_the_address_may_be_a_url_or_its_parts(values: dict[str, Any], url: str) -> None:
    assert ServiceAddress.of(Connection(conn_id="pool", **values)).url == url


@pytest.mark.parametrize("host", [None, "", "ftp://gpu", "http://", "http://gpu:many"], ids=repr)
def test_a_host_that_is_no_address_is_refused_with_the_connections_name(host: str | None) -> None:
    with pytest.raises(ValueError, match="Connection 'pool'"):
        ServiceAddress.of(Connection(conn_id="pool", host=host))


def test_an_address_never_shows_its_token() -> None:
    assert "secret" not in repr(ServiceAddress("http://gpu:8765", "secret"))


def test_a_right_connection_says_how_many_models_there_are(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    works, sentence = connect(monkeypatch, host=service.url, password=service.token + "\n").test_connection()
    assert works
    assert "No worker serves a model yet" in sentence


def test_a_wrong_token_is_said_to_be_wrong(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    works, sentence = connect(monkeypatch, host=service.url, password="wrong").test_connection()
    assert not works
    assert "token is not one of this service's" in sentence


@pytest.mark.parametrize("path", ["", "/elsewhere"])
def test_a_wrong_address_is_said_to_be_wrong(path: str, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host = service.url + path if path else "http://127.0.0.1:9"
    works, sentence = connect(monkeypatch, host=host, password=service.token).test_connection()
    assert not works
    assert host in sentence


def test_a_connection_without_a_host_fails_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    works, sentence = connect(monkeypatch).test_connection()
    assert not works
    assert "has no host" in sentence


def test_the_deployment_is_the_connections_or_airflows_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.internal/")
    assert connect(monkeypatch, host="gpu").deployment == "http://airflow.internal"
    assert connect(monkeypatch, host="gpu", extra={"deployment": "staging"}).deployment == "staging"


async def test_the_async_client_is_of_the_same_connection(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await connect(monkeypatch, host=service.url, password=service.token).aget_conn() as client:
        assert client.url == service.url
