"""Who sees and does what on the pages: Airflow's own permissions on the Dag that a batch comes from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.utils.session import create_session

from tests.airflow.pages.mounted import Pages
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


def test_a_list_of_one_dag_asks_for_that_dag_alone(pages: Pages, double: ServiceDouble) -> None:
    listed(pages, "reader", dag_ids=["salaries"])
    assert double.last("overview").body["visible_dag_ids"] == []


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


@pytest.mark.parametrize(("batch", "dags"), [("batch_salaries", "the Dag salaries"), ("batch_script", "all Dags")])
def test_who_may_not_is_told_the_permission_and_the_dag(
    pages: Pages, double: ServiceDouble, batch: str, dags: str
) -> None:
    error = pages.as_("editor").get(f"/api/v1/batches/{batch}/rows").json()["error"]
    assert error["code"] == "forbidden"
    assert f"permission GET on XComs of {dags}" in error["message"]
    error = pages.as_("editor").post(f"/api/v1/batches/{batch}/cancel", json={}).json()["error"]
    assert f"permission PUT on task instances of {dags}" in error["message"]


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
