"""The pages in Airflow over a real service: what users see of its batches, and whose acts it notes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import update

from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import Batch, BatchCreate, Origin
from tests.airflow.pages.mounted import Pages, connect
from tests.airflow.pages.service_double import DEPLOYMENT
from tests.conftest import RunningService

pytestmark = pytest.mark.airflow


@pytest.fixture
def connected(connected: RunningService, monkeypatch: pytest.MonkeyPatch) -> RunningService:
    """That of all tests, where this Airflow has a name of its own."""
    connect(monkeypatch, connected.url, password=connected.token)
    return connected


def submitted(
    connected: RunningService, name: str, dag_id: str | None, deployment: str = DEPLOYMENT, **more: Any
) -> Batch:
    origin = dag_id and Origin(deployment=deployment, dag_id=dag_id, task_id="classify", run_id="r", map_index=-1)
    spec: dict[str, Any] = {
        "source": "reviews.parquet",
        "target": f"{name}.parquet",
        "messages": [{"role": "user", "content": "What is {text}?"}],
    }
    create = {"dataset": spec, "model": "tiny", "origin": origin or None, **more}
    return connected.client.submit(BatchCreate.model_validate(create))


def listed(pages: Pages, user: str) -> set[str]:
    answer = pages.as_(user).post("/api/v1/batches/overview", json={}).raise_for_status().json()
    assert answer["total"] == len(answer["data"]) == sum(answer["statuses"].values())
    return {line["id"] for line in answer["data"]}


def test_the_list_and_its_counts_are_of_the_dags_that_a_user_may_see(pages: Pages, connected: RunningService) -> None:
    reviews = submitted(connected, "a", "reviews").id
    others = {
        submitted(connected, "b", "salaries").id,
        submitted(connected, "c", None).id,
        submitted(connected, "d", "reviews", "another-airflow").id,
    }
    assert listed(pages, "root") == {reviews} | others
    assert listed(pages, "watcher") == {reviews}
    with pages.as_("watcher") as browser:
        assert browser.get(f"/api/v1/batches/{reviews}/report").json()["batch"]["id"] == reviews
        assert {browser.get(f"/api/v1/batches/{other}/report").status_code for other in others} == {403}


def test_a_filter_by_one_dag_leaves_the_choice_of_the_others(pages: Pages, connected: RunningService) -> None:
    reviews = submitted(connected, "a", "reviews").id
    submitted(connected, "b", "salaries")
    submitted(connected, "c", "reviews", "another-airflow")
    answer = pages.as_("analyst").post("/api/v1/batches/overview", json={"dag_ids": ["reviews"]}).json()
    assert [line["id"] for line in answer["data"]] == [reviews]
    assert answer["dag_ids"] == ["reviews", "salaries"]
    answer = pages.as_("reader").post("/api/v1/batches/overview", json={"dag_ids": ["salaries"]}).json()
    assert (answer["data"], answer["total"], answer["dag_ids"]) == ([], 0, ["reviews"])


def test_two_airflows_without_a_name_of_their_own_share_no_rights(
    pages: Pages, connected: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, connected.url, password=connected.token, extra={})
    shared = BatchLLMHook().deployment
    assert shared == "airflow", "the keys of tasks that run now begin with it"
    batch = submitted(connected, "a", "reviews", shared).id
    with pages.as_("editor") as browser:
        assert browser.post("/api/v1/batches/overview", json={}).status_code == 403
        assert browser.get(f"/api/v1/batches/{batch}/report").status_code == 403
        assert browser.post(f"/api/v1/batches/{batch}/cancel", json={}).status_code == 403
    assert listed(pages, "root") == {batch}
    assert not connected.client.get(batch).status.ended


def test_a_cancel_is_done_once_and_says_who_did_it(pages: Pages, connected: RunningService) -> None:
    batch = submitted(connected, "a", "reviews")
    with pages.as_("reader") as browser:
        assert browser.post(f"/api/v1/batches/{batch.id}/cancel", json={}).status_code == 403
    assert not connected.client.get(batch.id).status.ended
    with pages.as_("editor") as browser:
        cancelled = browser.post(f"/api/v1/batches/{batch.id}/cancel", json={"by": "somebody else"}).json()
        report = browser.get(f"/api/v1/batches/{batch.id}/report").json()
    assert cancelled["status"] in (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
    assert [(act["act"], act["by"]) for act in report["acts"]][:1] == [("cancel", "editor")]
    assert report["may_act"] is True


def test_pause_resume_and_retry_reach_the_service(pages: Pages, connected: RunningService) -> None:
    batch = submitted(connected, "a", "reviews")
    connected.plan()
    with pages.as_("editor") as browser:
        calls = f"/api/v1/batches/{batch.id}"
        assert browser.post(f"{calls}/pause", json={}).json()["paused"] is not None
        assert browser.post(f"{calls}/resume", json={}).json()["paused"] is None
        refused = browser.post(f"{calls}/retry", json={})
        acts = browser.get(f"{calls}/report").json()["acts"]
    assert refused.status_code == 409
    assert [(act["act"], act["by"]) for act in acts[:2]] == [("resume", "editor"), ("pause", "editor")]


def test_rows_and_answers_of_a_running_batch_come_from_the_service(pages: Pages, connected: RunningService) -> None:
    batch = submitted(connected, "a", "reviews")
    connected.plan()
    with pages.as_("reader") as browser:
        rows = browser.get(f"/api/v1/batches/{batch.id}/rows", params={"limit": 1})
        answers = browser.get(f"/api/v1/batches/{batch.id}/answers")
        nothing = browser.get(f"/api/v1/batches/{batch.id}/download")
        workers = browser.get("/api/v1/workers")
    assert (rows.status_code, answers.status_code, workers.status_code) == (200, 200, 200)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "no_results_yet")
    assert json.loads(workers.content)["queue"][0]["batches"] == 1


def test_a_look_at_the_pages_lets_no_batch_go_on_that_nobody_waits_for(pages: Pages, connected: RunningService) -> None:
    batch = submitted(connected, "a", None, holder="try 1", pause_unwatched_after=120)
    connected.plan()
    with connected.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    connected.state.watching.pause_due()
    with pages.as_("root") as browser:
        for call in ("report", "rows", "answers"):
            browser.get(f"/api/v1/batches/{batch.id}/{call}").raise_for_status()
        [line] = browser.post("/api/v1/batches/overview", json={}).json()["data"]
    assert line["paused"] == "unwatched"
