"""What one caller may send: nothing without a token, no body above its limit, no more batches than an hour allows."""

from __future__ import annotations

import dataclasses
import io
import socket
from collections.abc import Iterator

import httpx
import openai
import pytest

from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import Limits, ServiceSettings
from airflow_batch_llm.store.tables import batches
from tests.conftest import RunningService, running_service
from tests.service.requests import create, file_of, finish, line, openai_client
from tests.service.two_teams import BLUE, RED, token_of

LIMITS = Limits(body_bytes=1_000, part_bytes=2_000, file_bytes=3_000, creates_per_hour=3)


@pytest.fixture(scope="module")
def tight_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    from pool import free_port

    folder = tmp_path_factory.mktemp("tight")
    (folder / "data").mkdir()
    settings = ServiceSettings(home=folder / "home", data_roots=(folder / "data",), port=free_port(), limits=LIMITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BATCH_LLM_TOKEN", raising=False)
        state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as running:
        yield running


@pytest.fixture
def tight(tight_state: RunningService) -> RunningService:
    """A service with low limits, to a team of the test's own."""
    return tight_state


def blocks(size: int) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for start in range(0, size, 100):
        yield b"x" * min(100, size - start)


def test_a_body_is_not_read_before_the_token_is_known(standing_service: RunningService) -> None:
    """The refusal comes while the client still waits to be asked for the first byte."""
    for authorization in ("", "Authorization: Bearer wrong\r\n"):
        for path in ("/v1/batches", "/v1/files", "/worker/v1/claim", "/v1/nope"):
            with socket.create_connection(("127.0.0.1", standing_service.settings.port), timeout=10) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n"
                connection.sendall(f"{head}{authorization}\r\n".encode())
                answer = b"".join(iter(lambda c=connection: c.recv(65_536), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("says_how_long", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "limit", "name"),
    [
        ("POST", "/v1/batches", 1_000, "body_bytes"),
        ("POST", "/v1/batches/watch", 1_000, "body_bytes"),
        ("POST", "/v1/batches/x/cancel", 1_000, "body_bytes"),
        ("POST", "/worker/v1/claim", 1_000, "body_bytes"),
        ("PUT", "/worker/v1/chunks/1/attempts/1/parts/0", 2_000, "part_bytes"),
    ],
)
def test_a_body_above_its_limit_is_refused_with_the_limit_and_the_size(
    tight: RunningService, method: str, path: str, limit: int, name: str, says_how_long: bool
) -> None:
    headers = {"Authorization": f"Bearer {tight.token}", "Content-Type": "application/json"}

    def sent(size: int) -> httpx.Response:
        content = b"x" * size if says_how_long else blocks(size)
        return httpx.request(method, f"{tight.url}{path}", headers=headers, content=content)

    refused = sent(limit + 1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    says = f"{limit + 1:,} bytes" if says_how_long else "more"
    assert f"The body has {says}, and this service takes at most {limit:,} bytes here" in refused.text
    assert name in refused.text
    assert sent(limit).status_code not in (401, 403, 413)


def test_a_client_that_never_ends_its_body_is_cut_off_at_the_limit(tight: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", tight.settings.port), timeout=10) as connection:
        head = "POST /v1/batches HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(f"{head}Authorization: Bearer {tight.token}\r\n\r\n".encode())
        connection.sendall((b"200\r\n" + b"x" * 512 + b"\r\n") * 2)
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_upload_has_a_limit_of_its_own(tight: RunningService) -> None:
    client = openai_client(tight)
    assert client.files.create(file=("a", io.BytesIO(b"x" * 2_500)), purpose="batch").bytes == 2_500
    with pytest.raises(openai.APIStatusError, match="at most 3,000") as refused:
        client.files.create(file=("a", io.BytesIO(b"x" * 3_001)), purpose="batch")
    assert refused.value.status_code == 413


@pytest.mark.parametrize("says_how_long", [True, False])
def test_an_upload_leaves_room_on_the_disk_for_the_batches_there_are(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, says_how_long: bool
) -> None:
    limits = dataclasses.replace(service.settings.limits, spare_bytes=1 << 60)
    monkeypatch.setitem(vars(service.state), "settings", dataclasses.replace(service.settings, limits=limits))
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Authorization": f"Bearer {service.token}", "Content-Type": "multipart/form-data; boundary=b"}
    content = form if says_how_long else iter([form])
    response = httpx.post(f"{service.url}/v1/files", headers=headers, content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
    assert f"which keeps {1 << 60:,} for the batches it has. Nothing was stored." in response.text
    assert [path for path in service.settings.storage_root.rglob("*") if path.is_file()] == []


def test_retries_count_among_the_creates_of_an_hour_and_a_refusal_says_when_to_come_again(
    tight: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = token_of(tight, RED)
    tight = dataclasses.replace(tight, token=token)
    client = openai_client(tight)
    first = create(client, file_of([line(0)]))
    finish(tight, failing=[0])
    headers = {"Authorization": f"Bearer {token}"}

    def retry(batch_id: str) -> httpx.Response:
        return httpx.post(f"{tight.url}/v1/batches/{batch_id}/retry", headers=headers)

    second = retry(first.id)
    assert second.status_code == 200
    finish(tight, failing=[0])
    assert retry(second.json()["id"]).status_code == 200
    third = client.batches.list().data[0].id
    assert retry(second.json()["id"]).json()["id"] == third  # it is open already: no new one, so nothing to count
    finish(tight, failing=[0])
    _age(tight, first.id, 3_000)
    for refused in (retry(third), _created(tight, headers)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 540 <= int(refused.headers["Retry-After"]) <= 600
        assert f"Try again in {refused.headers['Retry-After']} seconds." in refused.text
    _age(tight, first.id, 3_601)
    assert retry(third).status_code == 200


def test_a_key_that_was_used_before_opens_no_generation_beyond_the_limit(tight: RunningService) -> None:
    """Who finds what is there under a key may ask as often as they like."""
    tight = dataclasses.replace(tight, token=token_of(tight, BLUE))
    headers = {"Authorization": f"Bearer {tight.token}", "Idempotency-Key": "k"}
    file_id = create(openai_client(tight), file_of([line(0)])).input_file_id
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answers = []
    for _ in range(4):
        answer, again = (httpx.post(f"{tight.url}/v1/batches", headers=headers, json=body) for _ in range(2))
        answers.append(answer.status_code)
        if answer.status_code == 200:
            assert again.json()["id"] == answer.json()["id"]
            httpx.post(f"{tight.url}/v1/batches/{answer.json()['id']}/cancel", headers=headers)
            finish(tight)
    assert answers == [200, 200, 429, 429]


def _created(service: RunningService, headers: dict[str, str]) -> httpx.Response:
    body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return httpx.post(f"{service.url}/v1/batches", headers=headers, json=body)


def _age(service: RunningService, batch_id: str, seconds: float) -> None:
    """The batch was submitted so long ago."""
    database = service.state.database
    with database.writing() as connection:
        older = batches.update().where(batches.c.id == batch_id).values(created_at=database.now() - seconds)
        connection.execute(older)
