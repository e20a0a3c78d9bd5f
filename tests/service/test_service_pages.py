"""The pages without Airflow: what is served, who is let in, and what the cookie of a session opens."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from airflow_batch_llm.models import Scope
from airflow_batch_llm.pages import files
from airflow_batch_llm.pages.files import FOLDER, KINDS
from airflow_batch_llm.service import page_files
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.page_files import PREACT
from airflow_batch_llm.service.page_routes import MOST_LOGIN_BYTES
from airflow_batch_llm.service.page_session import COOKIE
from tests.conftest import RunningService
from tests.service.access_table import CALLS, READ, Call
from tests.service.keeping import submit
from tests.service.two_teams import NOTHING, revoked_token, token_of

PAGE = {"X-Batch-LLM-Page": "1", "Sec-Fetch-Site": "same-origin"}
"""What a browser sends with a call of the pages, where it trusts the connection."""
API = "/ui/api"


@pytest.fixture
def browser(service: RunningService) -> Iterator[httpx.Client]:
    """Keeps cookies as a browser does; nobody is logged in."""
    with httpx.Client(base_url=service.url, headers=PAGE) as http:
        yield http


def log_in(http: httpx.Client, token: str, **headers: str) -> httpx.Response:
    return http.post("/ui/login", json={"token": token}, headers=headers)


def code_of(response: httpx.Response) -> str:
    return f"{response.status_code} {response.json()['error']['code']}"


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in PAGE.items() if name not in names}


# What is served.


def test_the_page_takes_scripts_styles_and_answers_of_its_own_origin_alone(browser: httpx.Client) -> None:
    page = browser.get("/ui/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert policy["frame-ancestors"] == "'none'"
    assert re.findall(r"<script(.*?)>(.*?)</script>", page.text) == [(' type="module" src="static/standalone.js"', "")]
    assert "<style" not in page.text
    assert not re.search(r"\s(style|on\w+)=", page.text)


def test_every_address_in_the_page_is_relative_and_there(browser: httpx.Client) -> None:
    addresses = re.findall(r'(?:src|href)="(.*?)"', browser.get("/ui/").text)
    assert "static/pages.css" in addresses
    for address in addresses:
        assert not address.startswith(("/", "http"))
        assert browser.get(f"/ui/{address}").status_code == 200, address


@pytest.mark.parametrize("path", ["/", "/ui"])
def test_the_way_to_the_page_is_right_below_any_path_of_a_proxy(browser: httpx.Client, path: str) -> None:
    response = browser.get(path)
    assert (response.status_code, response.headers["location"]) == (307, "ui/")


@pytest.mark.parametrize("name", [*sorted(page_files.own_files()), *(f"preact/{name}" for name in PREACT)])
def test_a_file_has_its_kind_and_is_not_sent_again_to_who_has_it(browser: httpx.Client, name: str) -> None:
    first = browser.get(f"/ui/static/{name}")
    assert (first.status_code, first.headers["content-type"]) == (200, KINDS[Path(name).suffix])
    assert first.headers["x-content-type-options"] == "nosniff"
    tag = first.headers["etag"]
    again = browser.get(f"/ui/static/{name}", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert browser.get(f"/ui/static/{name}", headers={"If-None-Match": '"other"'}).content == first.content


def test_what_preacts_modules_import_is_served_too(browser: httpx.Client) -> None:
    texts = [browser.get(f"/ui/static/preact/{name}").text for name in PREACT]
    imported = {name for text in texts for name in re.findall(r'(?:from|import)\s*"\./([\w.-]+)"', text)}
    assert imported
    assert imported <= set(PREACT)


@pytest.mark.parametrize(
    "name",
    [
        "../__init__.py",
        "..%2f__init__.py",
        "%2e%2e/%2e%2e/settings.py",
        "preact/../../../settings.py",
        "preact/..%2findex.js",
        "preact/index.js",
        "preact//etc/passwd",
        "%2fetc/passwd",
        "..%5c..%5csettings.py",
        "pages.css%00.js",
        "",
        ".",
    ],
)
def test_no_name_leads_out_of_the_folder(service: RunningService, name: str) -> None:
    connection = HTTPConnection(service.url.removeprefix("http://"))  # sends the path as it is
    connection.request("GET", f"/ui/static/{name}")
    response = connection.getresponse()
    assert response.status in (400, 404)
    assert set(json.loads(response.read())) == {"error"}
    connection.close()


def test_other_kinds_of_files_in_the_folder_are_not_given_out(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("x")
    (tmp_path / "a.js").write_text("export {};")
    assert set(files.page_files(tmp_path)) == {"a.js"}


def test_a_page_without_reactpy_says_what_to_install(browser: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_files, "PREACT", ("preact.js", "of-another-release.js"))
    page = browser.get("/ui/")
    assert page.status_code == 503
    assert "pip install reactpy==2.0.0b13" in page.text
    assert "<script" not in page.text
    module = browser.get("/ui/static/preact/preact.js")
    assert code_of(module) == "503 preact_missing"
    assert "reactpy==2.0.0b13" in module.json()["error"]["message"]


def test_the_release_of_reactpy_that_is_named_is_the_one_that_is_required() -> None:
    required = (Path(page_files.__file__).parents[2] / "pyproject.toml").read_text()
    [release] = re.findall(r'"(reactpy==[^"]+)"', required)
    assert release in page_files.PREACT_HINT


def test_a_service_of_openais_api_alone_has_no_pages(service: RunningService) -> None:
    settings = dataclasses.replace(service.settings, extensions=False)
    http = TestClient(create_app(dataclasses.replace(service.state, settings=settings)))
    for path in ("/", "/ui/", "/ui/static/pages.css", f"{API}/v1/models"):
        assert http.get(path, headers=PAGE).status_code == 401
        assert http.get(path, headers=PAGE | {"Authorization": f"Bearer {service.token}"}).status_code == 404


def test_no_file_of_the_pages_has_an_address_of_another_origin() -> None:
    named = [
        (path.name, address)
        for path in FOLDER.rglob("*")
        if path.suffix in KINDS
        for address in re.findall(r"https?://[^\s\"'`)]+", path.read_text())
    ]
    assert [found for found in named if found[1] != "http://www.w3.org/2000/svg"] == []


# Logging in.


def test_a_token_logs_in_and_the_cookie_makes_the_calls_until_the_logout(
    service: RunningService, browser: httpx.Client
) -> None:
    batch = submit(service)
    assert code_of(browser.get(f"{API}/v1/batches/{batch.id}")) == "401 not_logged_in"
    assert 'data-session="none"' in browser.get("/ui/").text
    assert log_in(browser, service.token).status_code == 204
    assert 'data-session="open"' in browser.get("/ui/").text
    assert browser.get(f"{API}/v1/batches/{batch.id}").json()["id"] == batch.id
    assert browser.get(f"{API}/v1/batches?limit=1").json()["data"][0]["id"] == batch.id
    assert browser.post(f"{API}/v1/batches/{batch.id}/pause").json()["paused"] == "requested"
    assert browser.post(f"{API}/v1/batches/{batch.id}/cancel", json={}).json()["id"] == batch.id
    assert browser.post("/ui/logout").status_code == 204
    assert COOKIE not in browser.cookies
    assert code_of(browser.get(f"{API}/v1/batches/{batch.id}")) == "401 not_logged_in"


@pytest.mark.parametrize(
    ("headers", "secure"),
    [({}, False), ({"X-Forwarded-Proto": "https"}, True), ({"X-Forwarded-Proto": "https, http"}, True)],
)
def test_the_cookie_is_for_no_script_no_other_site_and_nothing_but_the_pages(
    service: RunningService, browser: httpx.Client, headers: dict[str, str], secure: bool
) -> None:
    name, *flags = log_in(browser, service.token, **headers).headers["set-cookie"].split("; ")
    assert name.startswith(f"{COOKIE}=")
    assert set(flags) == {"HttpOnly", "SameSite=Strict"} | ({"Secure"} if secure else set())
    [kept] = browser.cookies.jar
    assert (kept.path, kept.expires) == ("/ui", None)  # of a cookie without Path: the folder of the call


def test_any_token_that_can_be_one_fits_into_the_cookie(service: RunningService, browser: httpx.Client) -> None:
    token = 'p;a"s,s= %41\\wörd?'.replace("ö", "o") * 2
    service.state.tokens.add(token, name="odd", scopes=[Scope.READ])
    assert log_in(browser, token).status_code == 204
    assert browser.get(f"{API}/v1/batches").status_code == 200


def test_a_wrong_token_a_revoked_one_and_one_that_may_not_read_log_nobody_in(
    service: RunningService, browser: httpx.Client
) -> None:
    refused = [
        log_in(browser, "bl-wrong"),
        log_in(browser, revoked_token(service, "red")),
        log_in(browser, token_of(service, "red", Scope.WORKER)),
    ]
    assert [code_of(one) for one in refused] == ["401 invalid_api_key"] * 2 + ["403 insufficient_scope"]
    assert not [one for one in refused if "set-cookie" in one.headers]
    assert "bl-wrong" not in refused[0].text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"token": 1}', b'{"token": " "}', b"\xff", b"null"])
def test_a_login_without_a_token_says_what_it_should_be_and_repeats_nothing(
    browser: httpx.Client, content: bytes
) -> None:
    response = browser.post("/ui/login", content=content, headers={"Content-Type": "application/json"})
    assert code_of(response) == "400 invalid_request"
    assert '{"token": "…"}' in response.json()["error"]["message"]


def test_of_the_body_of_a_login_no_more_is_read_than_a_token_takes(browser: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1_000):
            nonlocal sent
            sent += MOST_LOGIN_BYTES
            yield b" " * MOST_LOGIN_BYTES

    sent = 0
    browser.headers["Content-Type"] = "application/json"
    refused = browser.post("/ui/login", content=b" " * MOST_LOGIN_BYTES + b"{}")
    assert code_of(refused) == "413 body_too_large"
    with contextlib.suppress(httpx.HTTPError):  # the connection was closed while it sent
        browser.post("/ui/login", content=endless())
    assert sent < 1_000 * MOST_LOGIN_BYTES


def test_a_token_that_is_revoked_ends_its_session(service: RunningService, browser: httpx.Client) -> None:
    token = token_of(service, "default", Scope.READ)
    log_in(browser, token)
    [record] = [record for record in service.state.tokens.all() if token.endswith(record.last_four)]
    service.state.tokens.revoke(record.id)
    assert code_of(browser.get(f"{API}/v1/batches")) == "401 invalid_api_key"


def test_the_token_is_in_no_answer_no_address_and_no_log(
    service: RunningService, browser: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [log_in(browser, service.token), browser.get("/ui/"), browser.get(f"{API}/v1/batches")]
    answers += [browser.get(f"{API}/v1/nope"), browser.post(f"{API}/v1/batches", json={"token": 1})]
    answers += [log_in(browser, service.token, **{"Sec-Fetch-Site": "cross-site"}), browser.post("/ui/logout")]
    for answer in answers:
        shown = {name: value for name, value in answer.headers.items() if name != "set-cookie"}
        assert service.token not in f"{answer.text} {shown} {answer.request.url}"
    own = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert service.token not in "".join(own)
    assert [answer.status_code for answer in answers if "set-cookie" in answer.headers] == [204, 204]


# What the cookie opens, and for whom.


@pytest.fixture
def logged_in(service: RunningService, browser: httpx.Client) -> httpx.Client:
    assert log_in(browser, service.token).status_code == 204
    return browser


@pytest.mark.parametrize("call", [call for call in CALLS if call.path.startswith("/v1/")], ids=str)
def test_every_call_of_v1_is_there_for_the_pages_or_says_that_its_body_is_not_json(
    logged_in: httpx.Client, call: Call
) -> None:
    through = dataclasses.replace(call, path=f"{API}{call.path}")
    told = through.make(logged_in, NOTHING, None)
    assert told.status_code in (200, 400, 404)
    assert told.headers["cache-control"] == "no-store"
    assert "sandbox" in told.headers["content-security-policy"]


@pytest.mark.parametrize("call", [call for call in CALLS if call.path.startswith("/worker/")], ids=str)
@pytest.mark.parametrize("prefix", [API, f"{API}/v1/..", f"{API}/v1/%2e%2e", "/ui", ""])
def test_the_cookie_does_no_work_of_a_worker(logged_in: httpx.Client, call: Call, prefix: str) -> None:
    told = dataclasses.replace(call, path=prefix + call.path).make(logged_in, NOTHING, None)
    assert told.status_code in (400, 401, 404)  # 400: a part is not JSON
    assert told.json()["error"]["code"] in ("not_found", "invalid_api_key", "invalid_content_type")


def test_a_session_may_no_more_than_its_token(service: RunningService, browser: httpx.Client) -> None:
    batch = submit(service)
    log_in(browser, token_of(service, "default", READ))
    assert browser.get(f"{API}/v1/batches/{batch.id}").status_code == 200
    assert code_of(browser.post(f"{API}/v1/batches/{batch.id}/cancel")) == "403 insufficient_scope"
    assert service.client.get(batch.id).status == "in_progress"
    log_in(browser, token_of(service, "blue"))
    assert code_of(browser.get(f"{API}/v1/batches/{batch.id}")) == "404 batch_not_found"


def test_the_cookie_counts_only_below_the_pages_and_a_header_only_outside(
    service: RunningService, logged_in: httpx.Client
) -> None:
    cookie = {"Cookie": f"{COOKIE}={logged_in.cookies[COOKIE]}"}
    bearer = {"Authorization": f"Bearer {service.token}"}
    assert httpx.get(f"{service.url}/v1/batches", headers=PAGE | cookie).status_code == 401
    assert httpx.get(f"{service.url}{API}/v1/batches", headers=PAGE | cookie).status_code == 200
    assert httpx.get(f"{service.url}{API}/v1/batches", headers=PAGE | bearer).status_code == 401
    wrong = {"Authorization": "Bearer bl-wrong"}
    assert httpx.get(f"{service.url}{API}/v1/batches", headers=PAGE | cookie | wrong).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/batches/{id}/cancel", "/v1/files/{id}/content"])
def test_a_call_that_is_not_the_pages_own_is_refused(logged_in: httpx.Client, method: str, path: str) -> None:
    path = f"{API}{path.format(id=NOTHING.batch_id)}"
    logged_in.headers.pop("X-Batch-LLM-Page")
    assert code_of(logged_in.request(method, path)) == "403 page_header_missing"


FOREIGN: dict[str, dict[str, str]] = {
    "of another site": PAGE | {"Sec-Fetch-Site": "cross-site"},
    "of another port": PAGE | {"Sec-Fetch-Site": "same-site"},
    "typed by the user": PAGE | {"Sec-Fetch-Site": "none"},
    "with an origin that says the opposite": PAGE | {"Sec-Fetch-Site": "cross-site", "Origin": "{url}"},
    "of another origin": without("Sec-Fetch-Site") | {"Origin": "http://elsewhere.example"},
    "of no origin": without("Sec-Fetch-Site") | {"Origin": "null"},
    "of another port by its origin": without("Sec-Fetch-Site") | {"Origin": "http://127.0.0.1:1"},
    "of nobody knows what": without("Sec-Fetch-Site"),
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=list(FOREIGN))
def test_nothing_is_changed_for_a_page_of_another_origin(
    service: RunningService, logged_in: httpx.Client, headers: dict[str, str]
) -> None:
    batch = submit(service)
    sent = {name: value.format(url=service.url) for name, value in headers.items()}
    cookie = {"Cookie": f"{COOKIE}={logged_in.cookies[COOKIE]}"}
    for path, body in (
        (f"{API}/v1/batches/{batch.id}/cancel", {}),
        ("/ui/logout", {}),
        ("/ui/login", {"token": service.token}),
    ):
        refused = httpx.post(f"{service.url}{path}", json=body, headers=sent | cookie)
        assert code_of(refused) == "403 foreign_page"
        assert "set-cookie" not in refused.headers
    assert service.client.get(batch.id).status == "in_progress"


@pytest.mark.parametrize(
    "headers",
    [
        PAGE,
        without("Sec-Fetch-Site") | {"Origin": "{url}"},
        without("Sec-Fetch-Site") | {"Origin": "http://llm.example", "X-Forwarded-Host": "llm.example"},
        without("Sec-Fetch-Site") | {"Origin": "http://llm.example", "Host": "llm.example"},
    ],
)
def test_the_pages_own_calls_are_known_with_and_without_tls_and_a_proxy(
    service: RunningService, headers: dict[str, str]
) -> None:
    sent = {name: value.format(url=service.url) for name, value in headers.items()}
    assert httpx.post(f"{service.url}/ui/login", json={"token": service.token}, headers=sent).status_code == 204


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_a_form_can_send_is_refused(service: RunningService, logged_in: httpx.Client, kind: str) -> None:
    batch, sent = submit(service), {"content": b"{}", "headers": {"Content-Type": kind}}
    assert code_of(logged_in.post(f"{API}/v1/batches/{batch.id}/cancel", **sent)) == "400 invalid_content_type"
    assert code_of(logged_in.post("/ui/login", **sent)) == "400 invalid_content_type"
    assert service.client.get(batch.id).status == "in_progress"


def test_a_link_to_a_download_is_followed_from_the_pages_alone(logged_in: httpx.Client) -> None:
    path = f"{API}/v1/batches/{NOTHING.batch_id}/download"
    del logged_in.headers["X-Batch-LLM-Page"]
    assert logged_in.get(path).status_code == 404
    for site in ("cross-site", "same-site", "none"):
        assert code_of(logged_in.get(path, headers={"Sec-Fetch-Site": site})) == "403 page_header_missing"
    assert code_of(logged_in.post(path)) == "403 page_header_missing"


def test_a_long_body_has_the_same_limit_by_way_of_the_pages(service: RunningService, logged_in: httpx.Client) -> None:
    long: dict[str, Any] = {"x": "y" * service.settings.limits.body_bytes}
    refused = logged_in.post(f"{API}/v1/batches", json=long)
    assert code_of(refused) == "413 body_too_large"


def test_a_preflight_of_another_origin_is_allowed_nothing(service: RunningService) -> None:
    asks = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "x-batch-llm-page, content-type"
    for path in ("/ui/login", f"{API}/v1/batches"):
        told = httpx.options(f"{service.url}{path}", headers=asks)
        assert told.is_error
        assert not [name for name in told.headers if name.startswith("access-control")]
