"""Who is let in, and how refusals look."""

from __future__ import annotations

import httpx
import pytest

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError, NotFoundError, UnauthorizedError
from tests.conftest import RunningService
from tests.service.test_service_bad_input import submit, write

PATHS = [
    ("GET", "/v1/models"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches/x"),
    ("POST", "/v1/batches/x/cancel"),
    ("GET", "/v1/batches/x/results"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/x"),
    ("GET", "/v1/files/x/content"),
    ("DELETE", "/v1/files/x"),
    ("POST", "/worker/v1/register"),
    ("POST", "/worker/v1/claim"),
    ("GET", "/worker/v1/chunks/1/attempts/1/rows"),
    ("PUT", "/worker/v1/chunks/1/attempts/1/parts/0"),
    ("POST", "/worker/v1/chunks/1/extend"),
    ("POST", "/worker/v1/chunks/1/commit"),
    ("POST", "/worker/v1/chunks/1/release"),
]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_nothing_but_health_is_told_without_the_token(service: RunningService, headers: dict[str, str]) -> None:
    for method, path in PATHS:
        response = httpx.request(method, service.url + path, headers=headers, json={})
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{service.url}/healthz", headers=headers).json()["status"] == "ok"


def test_every_path_of_the_service_is_in_the_table_above(service: RunningService) -> None:
    described = httpx.get(f"{service.url}/openapi.json").json()["paths"]
    assert len([path for path in described if path != "/healthz"]) <= len({path for _, path in PATHS}) + 1


def test_the_token_is_readable_by_its_owner_only_and_stored_hashed(service: RunningService) -> None:
    assert service.settings.token_path.stat().st_mode & 0o777 == 0o600
    for path in service.settings.home.glob("store.sqlite*"):
        assert service.token.encode() not in path.read_bytes()


def test_a_wrong_token_and_a_wrong_address_are_told_apart(service: RunningService) -> None:
    with BatchClient(service.url, "wrong") as client, pytest.raises(UnauthorizedError, match="not one of this service"):
        client.models()
    with BatchClient("http://127.0.0.1:9", "x") as client, pytest.raises(NoAnswerError, match="cannot be reached"):
        client.models()
    with BatchClient("no address", "x") as client, pytest.raises(NoAnswerError, match="cannot be reached"):
        client.models()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"nope": 1}, "nope"),
        ({"priority": 5000}, "priority"),
        ({"dataset": {"source": "a", "target": "b", "messages": []}}, "dataset.messages"),
        ({"dataset": {"source": "a", "target": "b", "messages": [{"role": "x", "content": ""}]}}, "messages.0.role"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_field(
    service: RunningService, body: dict[str, object], param: str
) -> None:
    headers = {"Authorization": f"Bearer {service.token}"}
    response = httpx.post(f"{service.url}/v1/batches", headers=headers, json=body)
    assert response.status_code == 400
    assert param in response.json()["error"]["param"]


def test_what_does_not_exist_is_a_404(service: RunningService) -> None:
    with pytest.raises(NotFoundError):
        service.client.get("batch_nope")
    with pytest.raises(NotFoundError):
        service.client.cancel("batch_nope")


def test_batches_are_listed_newest_first_a_page_at_a_time(service: RunningService) -> None:
    write(service.data_root)
    submitted = [submit(service, "ok.csv", f"t{number}.csv").id for number in range(25)]
    seen: list[str] = []
    page = service.client.list(limit=10)
    while True:
        seen += [batch.id for batch in page.data]
        if not page.has_more:
            break
        page = service.client.list(after=page.last_id, limit=10)
    assert seen == submitted[::-1]


def test_a_file_that_was_uploaded_comes_back_and_can_be_deleted(service: RunningService) -> None:
    path = service.data_root / "requests.jsonl"
    path.write_text('{"custom_id": "1"}\n')
    stored = service.client.upload(path)
    headers = {"Authorization": f"Bearer {service.token}"}
    url = f"{service.url}/v1/files/{stored.id}"
    assert httpx.get(f"{url}/content", headers=headers).content == path.read_bytes()
    assert httpx.delete(url, headers=headers).json()["deleted"] is True
    assert httpx.get(url, headers=headers).status_code == 404
