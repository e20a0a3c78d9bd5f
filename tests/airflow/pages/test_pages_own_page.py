"""Only our own page, with a user before it, gets an answer."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from airflow_batch_llm.plugins.pages_app import create_app
from tests.airflow.pages.mounted import PAGE, Pages
from tests.airflow.pages.service_double import ServiceDouble

pytestmark = pytest.mark.airflow

OVERVIEW = "/api/v1/batches/overview"


def every_call() -> list[tuple[str, str]]:
    """Each method and path of the application, also of calls that will come."""
    routes = [route for route in create_app().routes if isinstance(route, APIRoute)]
    named = {"name:path": "airflow.js", "batch_id": "batch_reviews", "path:path": "nothing/here"}
    calls = []
    for route in routes:
        path = route.path
        for name, value in named.items():
            path = path.replace(f"{{{name}}}", value)
        assert "{" not in path
        calls += [(method, path) for method in sorted(route.methods)]
    return calls


def test_the_calls_are_those_that_are_known() -> None:
    assert len(create_app().routes) == len([route for route in create_app().routes if isinstance(route, APIRoute)])
    assert {path for _, path in every_call()} >= {OVERVIEW, "/static/airflow.js", "/api/v1/workers", "/nothing/here"}


@pytest.mark.parametrize(("method", "path"), every_call())
def test_nothing_is_answered_without_a_user(pages: Pages, double: ServiceDouble, method: str, path: str) -> None:
    browser = pages.as_(None)
    for query in ({}, {"user": "root", "viewer": "root", "_token": "root"}):
        assert browser.request(method, path, params=query).status_code == 401
    browser.cookies.set("_token", "e30.e30.e30")
    assert browser.request(method, path).status_code == 403
    assert double.asked == []


def test_a_bearer_token_is_a_user_as_well_as_a_cookie(pages: Pages) -> None:
    token = pages.as_("root").cookies["_token"]
    answer = pages.as_(None, Authorization=f"Bearer {token}").get("/api/v1/whoami")
    assert answer.json()["name"] == "root"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"X-Batch-LLM-Page": None}, 403, "not_own_page"),
        ({"Content-Type": "text/plain"}, 415, "invalid_content_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "invalid_content_type"),
        ({"Content-Type": None}, 415, "invalid_content_type"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": "none"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": None}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": None, "Origin": "null"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": None, "Origin": "http://evil.example"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": None, "Origin": "https://airflow.example.evil.example"}, 403, "not_own_page"),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://airflow.example"}, 403, "not_own_page"),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [OVERVIEW, "/api/v1/batches/batch_reviews/cancel"])
def test_a_cookie_alone_changes_nothing(
    pages: Pages,
    double: ServiceDouble,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    changes: dict[str, str | None],
    status: int,
    code: str,
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/here")
    browser = pages.as_("root")
    browser.headers.clear()
    headers = {name: value for name, value in {**PAGE, **changes}.items() if value is not None}
    answer = browser.post(path, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "Nothing was done." in answer.json()["error"]["message"]
    assert double.asked == []


@pytest.mark.parametrize("own", ["https://airflow.example", "the host that was asked"])
def test_over_plain_http_the_origin_is_airflows_address_or_the_host_that_was_asked(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/here")
    origin = own if own.startswith("https") else pages.url
    browser = pages.as_("root", Origin=origin)
    del browser.headers["Sec-Fetch-Site"]
    assert browser.post(OVERVIEW, json={}).status_code == 200


def test_a_user_gets_the_files_of_the_pages_and_asks_again_for_what_they_have(pages: Pages) -> None:
    browser = pages.as_("stranger")
    first = browser.get("/static/airflow.js?v=0.1.0&at=nav")
    assert first.status_code == 200
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["cache-control"] == "private, no-cache"
    assert "globalThis.AirflowPlugin" in first.text
    again = browser.get("/static/airflow.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert browser.get("/static/nav-dark.svg").headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize(
    "name", ["", "none.js", "../files.py", "..%2ffiles.py", "%2e%2e/files.py", "/etc/passwd", "__init__.py"]
)
def test_no_name_of_a_file_leads_out_of_their_folder(pages: Pages, name: str) -> None:
    answer = pages.as_("root").get(f"/static/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_no_answer_is_a_page_of_its_own_or_kept(pages: Pages, double: ServiceDouble) -> None:
    with pages.as_("root") as browser:
        answers = [
            browser.get("/api/v1/whoami"),
            browser.get("/api/v1/batches/batch_reviews/download"),
            browser.get("/nothing"),
            pages.as_(None).get("/api/v1/whoami"),
        ]
    for answer in answers:
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
