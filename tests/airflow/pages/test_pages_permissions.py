"""Who sees and does what on the pages: Airflow's own permissions on the Dag that a batch comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from airflow.models import Connection
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.utils.session import create_session

from airflow_batch_llm.plugins import team_calls
from airflow_batch_llm.plugins.page_connections import SERVICES
from tests.airflow.pages import service_double
from tests.airflow.pages.mounted import Pages, connect
from tests.airflow.pages.service_double import DEPLOYMENT, TOKEN, ServiceDouble

pytestmark = pytest.mark.airflow

READS = ("rows", "answers", "download")
ACTS = ("cancel", "retry", "pause", "resume")
BATCHES = ("batch_reviews", "batch_salaries", "batch_script", "batch_foreign")
OWN = {"batch_reviews"}
USERS = ("root", "auditor", "editor", "reader", "watcher", "stranger")


def listed(pages: Pages, user: str, **asked: Any) -> set[str]:
    answer = pages.as_(user).post("/api/v1/batches/overview", json=asked).raise_for_status().json()
    return {line["id"] for line in answer["data"]}


@pytest.mark.parametrize("user", ["root", "auditor"])
def test_who_may_read_all_dags_sees_every_batch(pages: Pages, double: ServiceDouble, user: str) -> None:
    assert listed(pages, user) == set(BATCHES)
    assert double.last("overview").body.get("visible_dag_ids") is None


@pytest.mark.parametrize("user", ["editor", "reader", "watcher"])
def test_others_see_the_batches_of_their_dags_in_this_airflow(pages: Pages, double: ServiceDouble, user: str) -> None:
    assert listed(pages, user) == OWN
    asked = double.last("overview").body
    assert (asked["visible_dag_ids"], asked["visible_deployments"]) == (["reviews"], [DEPLOYMENT])


@pytest.mark.parametrize(
    "asked",
    [
        {"visible_dag_ids": ["salaries"]},
        {"visible_dag_ids": None, "visible_deployments": ["another-airflow"]},
        {"batch_ids": ["batch_salaries", "batch_script", "batch_foreign"]},
    ],
    ids=str,
)
def test_nothing_that_a_browser_says_shows_it_other_dags(
    pages: Pages, double: ServiceDouble, asked: dict[str, Any]
) -> None:
    assert listed(pages, "reader", **asked) <= OWN
    assert double.last("overview").body["visible_dag_ids"] == ["reviews"]


def test_a_list_of_one_dag_keeps_the_choice_of_the_others_that_the_user_may_see(
    pages: Pages, double: ServiceDouble
) -> None:
    listed(pages, "analyst", dag_ids=["reviews"])
    asked = double.last("overview").body
    assert (asked["visible_dag_ids"], asked["dag_ids"]) == (["reviews", "salaries"], ["reviews"])


def test_where_a_user_sees_more_dags_than_fit_a_list_of_some_of_them_is_possible(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_calls, "MOST_DAGS", 1)
    refused = pages.as_("analyst").post("/api/v1/batches/overview", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_dags")
    listed(pages, "analyst", dag_ids=["reviews", "no dag of theirs"])
    assert double.last("overview").body["visible_dag_ids"] == ["reviews"]


def test_the_choices_of_a_list_name_no_dag_that_the_user_may_not_see(pages: Pages, double: ServiceDouble) -> None:
    answer = pages.as_("reader").post("/api/v1/batches/overview", json={}).json()
    assert (answer["dag_ids"], answer["teams"]) == (["reviews"], [])
    assert pages.as_("root").post("/api/v1/batches/overview", json={}).json()["dag_ids"] == ["reviews", "salaries"]


@pytest.mark.parametrize("user", USERS)
def test_a_batch_and_its_rows_are_for_those_who_may_see_its_dag_and_its_data(
    pages: Pages, double: ServiceDouble, user: str
) -> None:
    everywhere = user in ("root", "auditor")
    for batch in BATCHES:
        sees = everywhere or (batch in OWN and user in ("editor", "reader", "watcher"))
        reads = everywhere or (batch in OWN and user in ("editor", "reader"))
        with pages.as_(user) as browser:
            answers = {call: browser.get(f"/api/v1/batches/{batch}/{call}") for call in ("report", *READS)}
        assert {call: answer.status_code for call, answer in answers.items()} == {
            "report": 200 if sees else 403,
            **dict.fromkeys(READS, 200 if reads else 403),
        }
        asked = {each.path.rpartition("/")[2] for each in double.asked if f"/{batch}/" in each.path}
        assert asked == ({"report"} if sees else set()) | (set(READS) if reads else set())


@pytest.mark.parametrize(
    ("batch", "dags"),
    [("batch_reviews", "the Dag reviews"), ("batch_salaries", "its Dag"), ("batch_script", "all Dags")],
)
def test_who_may_not_is_told_the_permission_and_the_dag_where_they_may_see_that(
    pages: Pages, double: ServiceDouble, batch: str, dags: str
) -> None:
    with pages.as_("watcher") as browser:
        read = browser.get(f"/api/v1/batches/{batch}/rows").json()["error"]
        act = browser.post(f"/api/v1/batches/{batch}/cancel", json={}).json()["error"]
    assert {read["code"], act["code"]} == {"forbidden"}
    assert f"permission GET on XComs of {dags}" in read["message"]
    assert f"permission PUT on task instances of {dags}" in act["message"]
    assert "Dag salaries" not in read["message"] + act["message"]


@pytest.mark.parametrize(("method", "call"), [("GET", "report"), *product(["GET"], READS), *product(["POST"], ACTS)])
def test_who_may_see_nothing_is_not_told_whether_a_batch_exists(
    pages: Pages, double: ServiceDouble, method: str, call: str
) -> None:
    with pages.as_("stranger") as browser:
        body = {"json": {}} if method == "POST" else {}
        answers = [
            browser.request(method, f"/api/v1/batches/{batch}/{call}", **body)
            for batch in ("batch_reviews", "batch_that_is_none")
        ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(403, "forbidden")] * 2
    assert answers[0].content == answers[1].content
    assert double.asked == []


@pytest.fixture
def nameless(double: ServiceDouble, monkeypatch: pytest.MonkeyPatch) -> ServiceDouble:
    """A service where this Airflow has the name alone that every Airflow has at first."""
    connect(monkeypatch, double.url, extra={})
    lines = [service_double.line(f"batch_{dag_id}", dag_id, "airflow") for dag_id in ("reviews", "salaries")]
    monkeypatch.setattr(service_double, "LINES", [*lines, service_double.line("batch_script", None)])
    return double


@pytest.mark.parametrize("call", ["report", *READS])
def test_where_airflow_has_no_name_of_its_own_a_dags_id_gives_no_rights(
    pages: Pages, nameless: ServiceDouble, call: str
) -> None:
    refused = pages.as_("editor").get(f"/api/v1/batches/batch_reviews/{call}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    for part in ("of all Dags", "[api] base_url", "`deployment` of the connection batch_llm_default"):
        assert part in refused.json()["error"]["message"]
    assert pages.as_("root").get(f"/api/v1/batches/batch_reviews/{call}").status_code == 200
    script = pages.as_("editor").get(f"/api/v1/batches/batch_script/{call}").json()["error"]["message"]
    assert "It comes from no Dag of this Airflow" in script


def test_where_airflow_has_no_name_of_its_own_nothing_is_changed_by_the_right_on_a_dag(
    pages: Pages, nameless: ServiceDouble
) -> None:
    for act in ACTS:
        assert pages.as_("editor").post(f"/api/v1/batches/batch_reviews/{act}", json={}).status_code == 403
    assert [asked.path for asked in nameless.asked] == ["/v1/batches/overview"] * len(ACTS)
    assert pages.as_("root").post("/api/v1/batches/batch_reviews/cancel", json={}).status_code == 200


def test_where_airflow_has_no_name_of_its_own_a_list_by_dags_says_how_to_give_it_one(
    pages: Pages, nameless: ServiceDouble
) -> None:
    refused = pages.as_("editor").post("/api/v1/batches/overview", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    for part in ("[api] base_url", "`deployment` of the connection batch_llm_default"):
        assert part in refused.json()["error"]["message"]
    assert nameless.asked == []
    assert listed(pages, "root") == {"batch_reviews", "batch_salaries", "batch_script"}


def test_airflows_address_is_a_name_of_its_own(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, double.url, extra={})
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/here/")
    assert listed(pages, "editor") == set()
    assert double.last("overview").body["visible_deployments"] == ["https://airflow.example/here"]


@pytest.mark.parametrize("user", USERS)
def test_only_who_may_change_a_dags_task_instances_changes_its_batches(
    pages: Pages, double: ServiceDouble, user: str
) -> None:
    with pages.as_(user) as browser:
        for batch, act in product(BATCHES, ACTS):
            double.forget()
            allowed = user == "root" or (user == "editor" and batch in OWN)
            body = {"by": "somebody else", "holder": "x"}
            assert browser.post(f"/api/v1/batches/{batch}/{act}", json=body).status_code == (200 if allowed else 403)
            done = [(asked.path, asked.body) for asked in double.asked if not asked.path.endswith("overview")]
            assert done == ([(f"/v1/batches/{batch}/{act}", {"by": user})] if allowed else [])


@pytest.mark.parametrize(("user", "may"), [("root", True), ("editor", True), ("auditor", False), ("reader", False)])
def test_a_batchs_page_says_whether_its_user_may_act(pages: Pages, double: ServiceDouble, user: str, may: bool) -> None:
    assert pages.as_(user).get("/api/v1/batches/batch_reviews/report").json()["may_act"] is may


@pytest.mark.parametrize(
    ("user", "scopes"),
    [("root", ["read", "submit"]), ("editor", ["read", "submit"]), ("watcher", ["read"]), ("stranger", [])],
)
def test_a_user_is_told_who_they_are_and_what_they_may_do(pages: Pages, user: str, scopes: list[str]) -> None:
    told = pages.as_(user).get("/api/v1/whoami").raise_for_status().json()
    assert (told["name"], told["scopes"], told["connections"]) == (user, scopes, ["batch_llm_default"])


def test_a_user_is_told_the_names_of_this_airflow_at_the_service_that_they_ask(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, double.url, "night", extra={"deployment": "by-night"})
    connect(monkeypatch, double.url, "nameless", extra={})
    connect(monkeypatch, double.url, "hidden", extra={"deployment": "nobody's business"})
    listed = "batch_llm_default,night,nameless,missing"
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS", listed)

    def names(conn_id: str | None) -> list[str]:
        params = {"conn_id": conn_id} if conn_id else {}
        told = pages.as_("stranger").get("/api/v1/whoami", params=params).raise_for_status().json()
        assert told["connections"] == listed.split(",")
        return list(told["deployments"])

    assert (names(None), names("night")) == ([DEPLOYMENT], ["by-night"])
    assert names("nameless") == names("missing") == names("hidden") == []
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    SERVICES.forget()
    assert names("night") == ["by-night", "https://airflow.example"]
    assert double.asked == []


def test_a_user_is_told_who_they_are_where_the_connection_cannot_be_looked_up(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(conn_id: str) -> Connection:
        raise PermissionError(f"the secrets backend says no to {conn_id}")

    monkeypatch.setattr(Connection, "get_connection_from_secrets", denied)
    assert pages.as_("root").get("/api/v1/whoami").raise_for_status().json()["deployments"] == []
    refused = pages.as_("root").post("/api/v1/batches/overview", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "no_connection")
    assert "PermissionError" in refused.json()["error"]["message"]


def test_workers_are_shown_to_who_may_see_any_dag(pages: Pages, double: ServiceDouble) -> None:
    assert pages.as_("watcher").get("/api/v1/workers").status_code == 200
    refused = pages.as_("stranger").get("/api/v1/workers")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_the_service_is_asked_with_the_connections_token_and_for_no_other_team(
    pages: Pages, double: ServiceDouble
) -> None:
    with pages.as_("root") as browser:
        browser.post("/api/v1/batches/overview?team=another", json={}).raise_for_status()
        browser.get("/api/v1/batches/batch_reviews/rows?team=another&limit=5").raise_for_status()
    assert {asked.headers["authorization"] for asked in double.asked} == {f"Bearer {TOKEN}"}
    assert double.last("rows").query == {"limit": "5"}
    assert not any("cookie" in asked.headers or "team" in asked.query for asked in double.asked)


@pytest.mark.parametrize(
    "auth_manager", ["airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"]
)
@pytest.mark.parametrize(("role", "acts"), [("viewer", 403), ("user", 200), ("op", 200), ("admin", 200)])
def test_the_roles_of_airflows_simple_auth_manager_hold(
    pages: Pages, double: ServiceDouble, role: str, acts: int
) -> None:
    with pages.as_("anybody", role) as browser:
        assert browser.get("/api/v1/batches/batch_script/rows").status_code == 200
        assert browser.post("/api/v1/batches/batch_script/cancel", json={}).status_code == acts


@pytest.fixture
def dag_of_another_team(airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Airflow with its own teams: ``salaries`` is team blue's, ``reviews`` is nobody's."""
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with create_session() as session:
        bundle = DagBundleModel(name="blue-dags")
        bundle.teams.append(Team(name="blue"))
        session.add(bundle)
        session.flush()
        session.get(DagModel, "salaries").bundle_name = "blue-dags"
    yield
    with create_session() as session:
        session.get(DagModel, "salaries").bundle_name = "dags"
        session.flush()
        bundle = session.get(DagBundleModel, "blue-dags")
        bundle.teams.clear()
        session.flush()
        session.delete(bundle)
        session.delete(session.get(Team, "blue"))


@pytest.mark.parametrize(
    "auth_manager", ["airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"]
)
def test_a_user_of_one_of_airflows_teams_does_not_see_the_dags_of_another(
    pages: Pages, double: ServiceDouble, dag_of_another_team: None
) -> None:
    assert listed(pages, "red-user") == OWN
    with pages.as_("red-user", "user") as browser:
        assert browser.get("/api/v1/batches/batch_reviews/rows").status_code == 200
        assert browser.get("/api/v1/batches/batch_salaries/rows").status_code == 403
        assert browser.post("/api/v1/batches/batch_script/cancel", json={}).status_code == 403
