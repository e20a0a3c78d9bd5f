"""Who is let in, and how refusals look."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx
import pytest

from airflow_batch_llm import __version__
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError, NotFoundError, UnauthorizedError
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service import page_routes
from airflow_batch_llm.service.app import create_app
from tests.conftest import RunningService
from tests.service.access_table import CALLS, OPEN, READ, Call, ask, expected, heard_as
from tests.service.test_service_bad_input import submit, write
from tests.service.test_service_pages import PAGE
from tests.service.two_teams import BLUE, MARK, NOTHING, RED, USUAL, red_things, token_of


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_answers_its_owner_alone_and_tells_nobody_else_anything(service: RunningService, call: Call) -> None:
    asked = ask(service, call)
    assert asked.answers() == expected(call)
    other, nothing = (_timeless(said.text) for said in (asked.heard["another team"], asked.about_nothing))
    same = other == nothing or asked.things.unnamed(other) == NOTHING.unnamed(nothing)
    assert same or _names_new_things(call)
    assert MARK not in other
    asked_for = str(asked.heard["another team"].request.url) + str(call.sends(asked.things))
    assert [found for found in asked.things.ids[:-1] if found in other and found not in asked_for] == []


def _timeless(text: str) -> str:
    """The text without the time of its making."""
    return re.sub(r'"at":[0-9.]+', "", text)


def _names_new_things(call: Call) -> bool:
    """Whether each answer has an id of its own in it."""
    return (call.method, call.path) in {("POST", "/v1/files"), ("POST", "/worker/v1/register")}


def test_no_token_names_another_team_in_any_call_but_that_of_an_admin_of_all_teams(
    standing_service: RunningService,
) -> None:
    """Not a team's own admin, nor a worker of all teams; and that admin in calls of clients alone."""
    tokens = {
        "admin": token_of(standing_service, BLUE, *Scope),
        "worker": token_of(standing_service, BLUE, *USUAL, all_teams=True),
    }
    admin = token_of(standing_service, BLUE, Scope.ADMIN, all_teams=True)
    with httpx.Client(base_url=standing_service.url) as http:
        for call in CALLS:
            heard = {who: heard_as(call.make(http, NOTHING, token, team=RED)) for who, token in tokens.items()}
            assert heard == dict.fromkeys(tokens, "403 team_not_allowed"), call
            allowed = heard_as(call.make(http, NOTHING, admin, team=RED))
            assert (allowed == "403 team_not_allowed") == (not call.path.startswith("/v1/")), call


def test_an_admin_of_all_teams_hears_what_the_team_that_he_names_hears(service: RunningService) -> None:
    things = red_things(service, token_of(service, RED))
    admin = token_of(service, BLUE, Scope.ADMIN, all_teams=True)
    asked = [call for call in CALLS if call.path.startswith("/v1/") and (call.scope == READ or call.other != "200")]
    asked = [call for call in asked if call.method != "DELETE"]  # after which there is nothing for others to find
    with httpx.Client(base_url=service.url) as http:
        heard = {str(call): heard_as(call.make(http, things, admin, team=RED)) for call in asked}
    assert heard == {str(call): call.own for call in asked}


def test_an_admin_of_all_teams_sees_one_team_at_a_time(service: RunningService) -> None:
    things = red_things(service, token_of(service, RED))
    headers = {"Authorization": f"Bearer {token_of(service, BLUE, Scope.ADMIN, all_teams=True)}"}
    with httpx.Client(base_url=service.url, headers=headers) as http:
        path = f"/v1/batches/{things.batch_id}"
        seen = {team: http.get(path, params=team and {"team": team}).status_code for team in (None, BLUE, RED)}
        assert http.get(path, params={"team": ""}).status_code == 400
        told = http.get("/v1/whoami", params={"team": RED}).json()
        assert (told["name"], told["team"], told["teams"]) == ("test", RED, sorted({*told["teams"], RED, BLUE}))
    assert seen == {None: 404, BLUE: 404, RED: 200}


def test_a_token_is_told_what_it_opens_and_no_other_team(service: RunningService) -> None:
    red_things(service, token_of(service, RED))
    headers = {"Authorization": f"Bearer {token_of(service, BLUE, Scope.READ, Scope.SUBMIT)}"}
    with httpx.Client(base_url=service.url, headers=headers) as http:
        told = http.get("/v1/whoami", params={"team": BLUE}).json()
        overview = http.post("/v1/batches/overview", json={}).json()
    assert told == {
        "name": "test", "team": BLUE, "scopes": ["read", "submit"], "teams": [BLUE], "version": __version__
    }  # fmt: skip
    assert overview["teams"] == []


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_missing_scope_is_named_with_those_that_the_token_has(standing_service: RunningService, call: Call) -> None:
    has = [scope for scope in (Scope.READ, Scope.SUBMIT, Scope.WORKER) if scope != call.scope]
    with httpx.Client(base_url=standing_service.url) as http:
        response = call.make(http, NOTHING, token_of(standing_service, "pale", *has))
        allowed = call.make(http, NOTHING, token_of(standing_service, "pale", Scope.ADMIN))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_scope")
    says = f"needs a token with the scope {call.scope}; the scopes of this one are: {', '.join(sorted(has))}."
    assert says in response.json()["error"]["message"]
    assert allowed.status_code not in (401, 403)


def test_every_call_that_the_service_describes_is_in_the_table(standing_service: RunningService) -> None:
    described = httpx.get(f"{standing_service.url}/openapi.json").json()["paths"]
    calls = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert {(call.method, call.path) for call in CALLS} == {call for call in calls if call[1] not in OPEN}


def test_every_test_that_the_threat_model_names_is_there() -> None:
    folder = Path(__file__).parent.parent
    written = "".join(path.name + path.read_text() for path in folder.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", (folder.parent / "SECURITY.md").read_text()))
    assert len(named) > 15
    assert [name for name in named if f"def {name}(" not in written and not name.endswith(".py")] == []
    assert [name for name in named if name.endswith(".py") and name not in written] == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_nothing_but_health_and_the_description_is_told_without_a_token(
    standing_service: RunningService, headers: dict[str, str]
) -> None:
    told = set()
    with httpx.Client(base_url=standing_service.url, headers=headers) as http:
        for route in create_app(standing_service.state).routes:
            for method in getattr(route, "methods", None) or ():
                response = http.request(method, getattr(route, "path", ""))
                told |= {getattr(route, "path", "")} if response.status_code != 401 else set()
        assert http.get("/v1/nope").status_code == http.get("/ui/api/v1/batches", headers=PAGE).status_code == 401
        assert http.get("/healthz").json()["status"] == "ok"
    pages = {getattr(route, "path", "") for route in page_routes.router.routes}
    assert told - pages == {"/healthz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}


def test_the_token_is_readable_by_its_owner_only_and_stored_hashed(standing_service: RunningService) -> None:
    assert standing_service.settings.token_path.stat().st_mode & 0o777 == 0o600
    stored = b"".join(path.read_bytes() for path in standing_service.settings.home.glob("store.sqlite*"))
    assert hashlib.sha256(standing_service.token.encode()).hexdigest().encode() in stored
    assert standing_service.token.encode() not in stored


def test_a_wrong_token_and_a_wrong_address_are_told_apart(standing_service: RunningService) -> None:
    with (
        BatchClient(standing_service.url, "wrong") as client,
        pytest.raises(UnauthorizedError, match="not one of this service"),
    ):
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
        ({"model": "m", "dataset": {"source": "a", "target": "b", "messages": []}}, "dataset.messages"),
        ({"dataset": {"source": "a", "target": "b", "messages": [{"role": "x", "content": ""}]}}, "messages.0.role"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_field(
    standing_service: RunningService, body: dict[str, object], param: str
) -> None:
    headers = {"Authorization": f"Bearer {standing_service.token}"}
    response = httpx.post(f"{standing_service.url}/v1/batches", headers=headers, json=body)
    assert response.status_code == 400
    assert param in response.json()["error"]["param"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/v1/batches/batch_nope", b"", 404, "batch_not_found"),
        ("GET", "/v1/batches/batch_nope/results", b"", 404, "batch_not_found"),
        ("GET", "/v1/batches?after=batch_nope", b"", 404, "batch_not_found"),
        ("GET", "/v1/files/file-nope", b"", 404, "file_not_found"),
        ("GET", "/v1/nope", b"", 404, "not_found"),
        ("DELETE", "/v1/batches", b"", 405, "method_not_allowed"),
        ("GET", "/v1/batches?limit=0", b"", 400, "invalid_request"),
        ("GET", "/v1/batches?limit=101", b"", 400, "invalid_request"),
        ("POST", "/v1/batches", b"{", 400, "invalid_json"),
        ("POST", "/v1/batches", b'{"key": "\xff"}', 400, "invalid_json"),
        ("POST", "/v1/batches", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/batches", b'{"\\ud800": 1}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"key": "\\ud800"}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"metadata": {"a": "\\u0000"}}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"dataset": {"parameters": {"x": ["\\udfff"]}}}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"dataset": {"parameters": {"x": NaN}}}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"dataset": {"parameters": {"x": 1e999}}}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"priority": 9223372036854775808}', 400, "invalid_value"),
        ("POST", "/v1/batches", b'{"key": %s"x"%s}' % (b"[" * 65, b"]" * 65), 400, "invalid_value"),
        ("POST", "/worker/v1/chunks/9223372036854775808/extend", b'{"attempt": 1}', 400, "invalid_value"),
        ("GET", "/v1/files/file%00nope", b"", 400, "invalid_value"),
        ("GET", "/v1/batches?key=a%00b", b"", 400, "invalid_value"),
        ("GET", "/v1/files/%ED%A0%80", b"", 404, "file_not_found"),
        ("GET", "/v1/files?after=" + "9" * 10_000, b"", 404, "file_not_found"),
        ("POST", "/v1/batches", b"{}", 400, "missing_required_parameter"),
        ("POST", "/v1/batches", b'{"input_file_id": "file-x"}', 400, "missing_required_parameter"),
        ("POST", "/worker/v1/claim", b'{"worker_id": "worker-nope"}', 404, "worker_unknown"),
        ("POST", "/worker/v1/chunks/987654321/extend", b'{"attempt": 1}', 409, "lease_lost"),
    ],
)
def test_every_refusal_has_the_body_of_an_openai_error(
    standing_service: RunningService, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    headers = {"Authorization": f"Bearer {standing_service.token}", "Content-Type": "application/json"}
    response = httpx.request(method, standing_service.url + path, headers=headers, content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["message"].endswith(".")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/files", "GET, POST"),
        ("HEAD", "/v1/files/x", "DELETE, GET"),
        ("POST", "/v1/files/x/content", "GET"),
        ("DELETE", "/v1/batches", "GET, POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    standing_service: RunningService, method: str, path: str, allowed: str
) -> None:
    headers = {"Authorization": f"Bearer {standing_service.token}"}
    response = httpx.request(method, standing_service.url + path, headers=headers)
    assert (response.status_code, response.headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert f"allowed there: {allowed}. Nothing was done." in response.json()["error"]["message"]


def test_what_does_not_exist_is_a_404(standing_service: RunningService) -> None:
    with pytest.raises(NotFoundError):
        standing_service.client.get("batch_nope")
    with pytest.raises(NotFoundError):
        standing_service.client.cancel("batch_nope")


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
