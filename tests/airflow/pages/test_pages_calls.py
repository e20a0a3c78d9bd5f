"""What becomes of the pages' calls on the way to a service and back."""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

import httpx
import pytest
from airflow.models import Connection
from airflow.utils.session import create_session
from pool import free_port
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from tests.airflow.pages.mounted import Pages, connect
from tests.airflow.pages.service_double import PROMPT, TOKEN, ServiceDouble
from tests.airflow.pages.test_pages_own_page import every_call
from tests.conftest import running_service

pytestmark = pytest.mark.airflow

OVERVIEW = "/api/v1/batches/overview"
ROWS = "/api/v1/batches/batch_reviews/rows"


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert TOKEN not in answer.text
    return answer.status_code, error["code"], error["message"]


def service_says(status: int, code: str, message: str = "A sentence.") -> Response:
    error = {"message": message, "type": "invalid_request_error", "code": code}
    return JSONResponse({"error": error}, status, headers={"Retry-After": "7"})


def test_a_service_that_is_away_is_named_with_its_address_and_nothing_secret(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    someone = ":".join(("someone", "hidden"))
    connect(monkeypatch, f"http://{someone}@127.0.0.1:{port}")
    status, code, message = refusal(pages.as_("root").post(OVERVIEW, json={}))
    assert (status, code) == (502, "service_unreachable")
    assert f"http://127.0.0.1:{port} (connection batch_llm_default)" in message
    assert "hidden" not in message


def test_a_missing_connection_says_how_to_make_it(pages: Pages) -> None:
    status, code, message = refusal(pages.as_("root").post(OVERVIEW, json={}))
    assert (status, code) == (404, "no_connection")
    assert "no connection batch_llm_default" in message
    assert "type Batch LLM" in message


def test_a_connection_without_a_usable_address_says_what_is_wrong(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "ftp://gpu")
    status, code, message = refusal(pages.as_("root").post(OVERVIEW, json={}))
    assert (status, code) == (404, "no_connection")
    assert "'ftp://gpu', which is no http or https address" in message


def test_only_listed_connections_are_asked(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, double.url, "other")
    status, code, message = refusal(pages.as_("root").post(f"{OVERVIEW}?conn_id=other", json={}))
    assert (status, code) == (403, "connection_not_listed")
    assert "AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS" in message
    assert double.asked == []
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS", "batch_llm_default, other")
    assert pages.as_("root").get("/api/v1/whoami").json()["connections"] == ["batch_llm_default", "other"]
    assert pages.as_("root").post(f"{OVERVIEW}?conn_id=other", json={}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [call for call in every_call() if "/api/v1/" in call[1] and not call[1].endswith("whoami")]
)
def test_every_call_asks_the_service_of_the_connection_that_it_names(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    others = " ".join(("the", "other", "token"))
    connect(monkeypatch, double.url, "other", password=others)
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS", "batch_llm_default,other")
    with pages.as_("root") as browser:
        answer = browser.request(method, path, params={"conn_id": "other"}, content=b"{}" if method == "POST" else None)
    assert answer.status_code == 200
    assert {asked.headers["authorization"] for asked in double.asked} == {f"Bearer {others}"}


def test_the_first_listed_connection_is_asked_where_none_is_named(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, double.url, "other")
    connect(monkeypatch, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS", "other")
    assert pages.as_("root").post(OVERVIEW, json={}).status_code == 200


def test_a_connection_of_airflows_database_is_found(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS", "stored")
    with create_session() as session:
        session.add(Connection(conn_id="stored", conn_type="batch_llm", host=double.url, password=TOKEN))
    try:
        assert pages.as_("root").post(OVERVIEW, json={}).status_code == 200
    finally:
        with create_session() as session:
            for stored in session.query(Connection).filter(Connection.conn_id == "stored"):
                session.delete(stored)
    assert double.last("overview").headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (service_says(401, "invalid_api_key"), 502, "token_refused"),
        (service_says(403, "insufficient_scope"), 502, "token_refused"),
        (service_says(404, "batch_not_found"), 404, "batch_not_found"),
        (service_says(409, "not_ready"), 409, "not_ready"),
        (service_says(400, "invalid_request"), 400, "invalid_request"),
        (service_says(429, "too_many"), 429, "too_many"),
        (service_says(503, "store_trouble"), 503, "store_trouble"),
        (service_says(404, "not_found"), 502, "service_too_old"),
        (service_says(405, "method_not_allowed"), 502, "service_too_old"),
        (Response("<html>no such page", 404), 502, "service_too_old"),
        (Response("<html>bad gateway", 502), 502, "service_unreachable"),
        (Response("<html>gateway timeout", 504), 502, "service_unreachable"),
        (Response("Internal Server Error", 500), 502, "service_unreachable"),
        (Response(status_code=307, headers={"Location": "http://evil.example/"}), 502, "service_unreachable"),
    ],
    ids=lambda value: str(getattr(value, "status_code", value)),
)
def test_what_the_service_refuses_reaches_the_page_with_a_code(
    pages: Pages, double: ServiceDouble, answer: Response, status: int, code: str
) -> None:
    double.answers["/v1/batches/batch_reviews/rows"] = answer
    response = pages.as_("root").get(ROWS)
    assert refusal(response)[:2] == (status, code)
    assert response.headers.get("retry-after") == (None if status == 502 else "7")


def test_a_batch_that_is_gone_is_said_to_be_gone(pages: Pages, double: ServiceDouble) -> None:
    status, code, message = refusal(pages.as_("root").get("/api/v1/batches/batch_gone/report"))
    assert (status, code) == (404, "batch_not_found")
    assert "batch_gone" in message
    assert refusal(pages.as_("root").get("/api/v1/batches/../report"))[:2] == (404, "not_found")
    assert refusal(pages.as_("root").get("/api/v1/batches/a%20b/report"))[:2] == (400, "invalid_request")


def test_a_service_without_extensions_is_said_to_be_too_old_for_the_pages(
    pages: Pages, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ServiceState.open(dataclasses.replace(settings, extensions=False))
    token = state.settings.token_path.read_text().strip()
    with running_service(state, token) as plain:
        connect(monkeypatch, plain.url, password=token)
        status, code, message = refusal(pages.as_("root").post(OVERVIEW, json={}))
    assert (status, code) == (502, "service_too_old")
    assert "POST /v1/batches/overview" in message


@pytest.mark.parametrize("said", ["<html>Welcome", '{"data": 1}', '{"version": "1", "at": 1, "data": [{"id": "x"}]}'])
def test_another_server_that_answers_everything_is_said_to_be_none_for_the_pages(
    pages: Pages, double: ServiceDouble, said: str
) -> None:
    double.answers["/v1/batches/overview"] = Response(said)
    assert refusal(pages.as_("root").post(OVERVIEW, json={}))[:2] == (502, "service_too_old")
    assert refusal(pages.as_("root").get(ROWS))[:2] == (502, "service_too_old")


def test_a_call_that_waits_ends_when_the_browser_hangs_up(pages: Pages, double: ServiceDouble) -> None:
    def ask() -> None:
        with pages.as_("root") as browser, pytest.raises(httpx.ReadTimeout):
            browser.post(OVERVIEW, json={"version": "1", "wait": 25}, timeout=httpx.Timeout(1.0))

    asking = threading.Thread(target=ask)
    asking.start()
    assert double.waiting.wait(10)
    asking.join()
    assert double.left.wait(10)


@pytest.mark.parametrize(
    "body",
    [b"[", b"[]", b'{"limit": 100000}', b'{"wait": 26}', b'{"more": 1}', b"\xff", b'{"offset": 1' + b" " * (1 << 18)],
)
def test_a_body_that_is_no_question_is_refused_before_the_service_is_asked(
    pages: Pages, double: ServiceDouble, body: bytes
) -> None:
    answer = pages.as_("root").post(OVERVIEW, content=body)
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] in ("invalid_request", "body_too_large")
    assert double.asked == []


def test_only_the_parameters_of_a_call_go_on(pages: Pages, double: ServiceDouble) -> None:
    with pages.as_("root") as browser:
        browser.get("/api/v1/batches/batch_reviews/report?version=4&wait=0&by=x&limit=3")
        browser.get("/api/v1/batches/batch_reviews/rows?after=1&limit=3&status=error&label=a&search=b&x=y")
        browser.get("/api/v1/batches/batch_reviews/download?file=2&path=/etc/passwd")
    assert double.last("report").query == {"version": "4", "wait": "0"}
    assert double.last("rows").query == {"after": "1", "limit": "3", "status": "error", "label": "a", "search": "b"}
    assert double.last("download").query == {"file": "2"}


def test_a_download_is_a_file_and_never_a_page(pages: Pages, double: ServiceDouble) -> None:
    with pages.as_("root") as browser:
        answer = browser.get("/api/v1/batches/batch_reviews/download")
        double.answers["/v1/batches/batch_reviews/download"] = Response("<script>", media_type="text/html")
        forged = browser.get("/api/v1/batches/batch_reviews/download")
    assert answer.content == b"text,llm_output\n" * 1000
    assert answer.headers["content-disposition"] == 'attachment; filename="labels.csv"'
    assert answer.headers["content-type"].startswith("text/csv")
    assert forged.headers["content-disposition"] == "attachment"
    assert "sandbox" in forged.headers["content-security-policy"]


def test_nothing_of_a_row_or_a_token_is_logged(
    pages: Pages, double: ServiceDouble, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    with pages.as_("root") as browser:
        assert PROMPT in browser.get(ROWS, params={"search": "words of a search"}).text
        double.answers["/v1/batches/batch_reviews/rows"] = service_says(400, "invalid_request", PROMPT)
        browser.get(ROWS)
    ours = [record for record in caplog.records if record.name.startswith("airflow_batch_llm")]
    logged = " ".join(record.getMessage() for record in ours) + "".join(capfd.readouterr())
    assert PROMPT not in logged
    assert TOKEN not in logged
    assert "words of a search" not in logged


def test_one_of_several_services_that_answers_is_enough(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, f"http://127.0.0.1:{free_port()},{double.url}")
    for _ in range(4):
        assert pages.as_("root").post(OVERVIEW, json={}).status_code == 200
