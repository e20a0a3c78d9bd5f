"""The pages on batches inside a real Airflow, in a real browser: its navigation, its tabs, its permissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, expect

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch
from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle
from tests.airflow.lifecycle.people import AirflowForPeople, airflow_for_people
from tests.airflow.lifecycle.task import Task, eventually
from tests.pages.batches import LabellingWorker, Running
from tests.pages.conftest import browser, looks, scheme
from tests.pages.looking import Looks, axe, screenshot

__all__ = ["browser", "looks", "scheme"]  # fixtures
pytestmark = [pytest.mark.airflow, pytest.mark.browser]

NAV = "/plugin/llm-batches"
OURS = ".blm"


@pytest.fixture(scope="module")
def people(lifecycle: Lifecycle) -> Iterator[AirflowForPeople]:
    with airflow_for_people(lifecycle) as running:
        yield running


@pytest.fixture
def labelling(lifecycle: Lifecycle) -> tuple[Task, Running]:
    """A deferred task, and its batch of 60 rows, of which a worker holds the only chunk."""
    task = lifecycle.trigger("labels").reaches("deferred")
    batch = task.batch()
    worker = LabellingWorker(lifecycle, failing=range(5, 60, 20))
    claim, lines = eventually(worker.claim, f"batch {batch.id} is planned")
    assert claim.batch_id == batch.id
    return task, Running(batch, worker, claim, sorted(lines, key=lambda line: line.row))


def row_of(page: Page, batch: Batch) -> Locator:
    return page.locator(f"tr[data-batch={batch.id}]")


def seen(page: Page, name: str) -> None:
    """Nothing of ours is hard to perceive; and a picture, if somebody wants one."""
    assert axe(page, OURS) == []
    screenshot(page, f"airflow-{name}")


def test_a_batch_is_followed_read_and_cancelled_in_airflow(
    people: AirflowForPeople, looks: Looks, labelling: tuple[Task, Running]
) -> None:
    task, running = labelling
    page = people.person(looks, "label_editor").new_page()
    page.goto(f"{people.url}{NAV}")
    row = row_of(page, running.batch)
    expect(row).to_contain_text("0 / 60")
    page.evaluate("globalThis.notReloaded = true")
    running.does(24)
    expect(row).to_contain_text("24 / 60")
    seen(page, "list")
    row.get_by_title(running.batch.id).click()
    expect(page.get_by_role("heading", name=running.batch.id)).to_be_visible()
    expect(page.get_by_role("figure")).to_have_count(2)
    seen(page, "batch")
    page.get_by_role("tab", name="Rows").click()
    expect(page.locator("[data-row]")).to_have_count(10)
    first = page.locator("[data-row]").first
    expect(first.get_by_role("group", name=re.compile("Prompt"))).to_contain_text("What is this review about?")
    expect(first.get_by_role("group", name=re.compile("Input"))).to_contain_text("text")
    seen(page, "rows")
    page.get_by_role("button", name="Cancel batch").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("24 of 60 rows are done")
    seen(page, "cancel")
    dialog.get_by_role("button", name="Cancel batch").click()
    page.get_by_role("tab", name="Overview").click()
    expect(page.get_by_text("label_editor cancelled it")).to_be_visible()
    expect(page.get_by_role("heading", name=running.batch.id)).to_contain_text("Cancel")
    assert page.evaluate("globalThis.notReloaded")
    task.is_cancelled(running.batch)
    task.reaches("failed")


def test_the_tabs_of_a_task_and_of_a_run_show_their_batches(
    lifecycle: Lifecycle, looks: Looks, labelling: tuple[Task, Running], scheme: str
) -> None:
    task, running = labelling
    running.does(30)
    looks.expect("hitl")  # another provider asks for what is not there
    page = looks.person(scheme, url=lifecycle.airflow.url).new_page()
    page.set_default_timeout(60_000)
    page.context.add_cookies([{"name": "_token", "value": lifecycle.airflow.token(), "url": lifecycle.airflow.url}])
    run = f"/dags/labels/runs/{quote(task.run_id, safe='')}"
    page.goto(f"{run}/tasks/answer")
    page.get_by_role("link", name="LLM batch", exact=True).click()
    expect(page.get_by_text(running.batch.id)).to_be_visible()
    expect(page.get_by_text("30 / 60 rows")).to_be_visible()
    seen(page, "task")
    page.goto(run)
    page.get_by_role("link", name="LLM batches", exact=True).last.click()
    expect(row_of(page, running.batch)).to_contain_text("30 / 60")
    seen(page, "run")
    running.finishes()


@WHOLE_ONLY
def test_a_task_without_a_batch_says_so(lifecycle: Lifecycle, looks: Looks, scheme: str) -> None:
    looks.expect("hitl")
    task, _ = lifecycle.deferred("waits")
    page = looks.person(scheme, url=lifecycle.airflow.url).new_page()
    page.context.add_cookies([{"name": "_token", "value": lifecycle.airflow.token(), "url": lifecycle.airflow.url}])
    page.goto(f"/dags/waits/runs/{quote(task.run_id, safe='')}/tasks/sibling/plugin/llm-task-batches")
    expect(page.get_by_text("No batches here")).to_be_visible()
    seen(page, "no-batch")
    task.mark("failed")


def test_who_may_only_look_is_offered_no_act_and_who_may_not_sees_nothing(
    people: AirflowForPeople, looks: Looks, labelling: tuple[Task, Running]
) -> None:
    task, running = labelling
    looks.expect("403")
    page = people.person(looks, "label_reader").new_page()
    page.goto(f"{people.url}{NAV}?batch={running.batch.id}")
    expect(page.get_by_role("button", name="Cancel batch")).to_be_disabled()
    expect(page.get_by_text("You may look at this batch, but not change it.")).to_be_visible()
    seen(page, "reader")
    forced = """async id => {
      const headers = {"Content-Type": "application/json", "X-Batch-LLM-Page": "1"};
      const url = new URL(`batch-llm/api/v1/batches/${id}/cancel`, document.baseURI);
      const response = await fetch(url, {method: "POST", headers, body: "{}"});
      return [response.status, (await response.json()).error.message];
    }"""
    status, message = page.evaluate(forced, running.batch.id)
    assert status == 403
    assert "Airflow's permission PUT on task instances of the Dag labels" in message
    page = people.person(looks, "stranger").new_page()
    page.goto(f"{people.url}{NAV}?batch={running.batch.id}")
    expect(page.get_by_role("alert")).to_contain_text("You may not see this")
    seen(page, "stranger")
    assert task.lifecycle.listed(running.batch).status == BatchStatus.IN_PROGRESS
    running.finishes()


@WHOLE_ONLY
def test_failed_rows_are_retried_from_the_page(
    people: AirflowForPeople, looks: Looks, labelling: tuple[Task, Running], scheme: str
) -> None:
    _, running = labelling
    running.finishes()
    page = people.person(looks, "label_editor", scheme).new_page()
    page.goto(f"{people.url}{NAV}?batch={running.batch.id}")
    expect(page.get_by_role("heading", name=running.batch.id)).to_contain_text("Completed")
    page.get_by_role("link", name="3 rows failed").click()
    expect(page.locator("[data-row]")).to_have_count(3)
    seen(page, "failed-rows")
    page.get_by_role("button", name="Retry failed rows").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("3 rows are asked again")
    seen(page, "retry")
    dialog.get_by_role("button", name="Retry failed rows").click()
    expect(page.get_by_role("heading", name=re.compile("batch_"))).not_to_contain_text(running.batch.id)
    expect(page.get_by_text("label_editor retried it")).to_be_visible()
    seen(page, "retried")


@WHOLE_ONLY
def test_a_service_that_is_away_is_said_to_be_and_is_seen_to_come_back(
    lifecycle: Lifecycle, people: AirflowForPeople, looks: Looks, labelling: tuple[Task, Running], scheme: str
) -> None:
    _, running = labelling
    looks.expect("502", "504", "503")
    page = people.person(looks, "label_editor", scheme).new_page()
    page.goto(f"{people.url}{NAV}")
    expect(row_of(page, running.batch)).to_be_visible()
    lifecycle.service.end()
    try:
        expect(page.get_by_role("alert")).to_contain_text("The batch service does not answer")
        expect(row_of(page, running.batch)).to_be_visible()
        seen(page, "service-away")
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("The batch service does not answer")
        seen(page, "service-away-reloaded")
    finally:
        lifecycle.service.start()
    expect(row_of(page, running.batch)).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
