"""The pages that the service itself serves, in a real browser."""

from __future__ import annotations

import os
import re

import pytest
from playwright.sync_api import Locator, Page, expect

from airflow_batch_llm.models import Scope
from tests.conftest import RunningService, eventually
from tests.pages.batches import EveryState, LabellingWorker, Restartable, running, submitted
from tests.pages.conftest import logged_in
from tests.pages.looking import Looks, axe, screenshot
from tests.service.two_teams import token_of

pytestmark = pytest.mark.browser

TABS = ("Overview", "Rows", "Attempts", "Spec")
WHOLE = ("completed", "some_failed", "cancelled", "failed", "paused", "waiting", "running")
STATES = WHOLE if os.environ.get("WHOLE") else ("some_failed", "running")


def row_of(page: Page, batch_id: str) -> Locator:
    return page.locator(f"tr[data-batch={batch_id}]")


# Logging in and out.


def test_a_token_opens_the_pages_and_a_logout_closes_them(looks: Looks, shown: EveryState, scheme: str) -> None:
    page = looks.person(scheme, url=shown.service.url).new_page()
    page.goto("/")
    field = page.get_by_label("Token")
    expect(field).to_be_focused()
    assert axe(page) == []
    screenshot(page, "login")
    page.keyboard.type(shown.service.token)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Token first, team default")).to_be_visible()
    expect(row_of(page, shown.completed.id)).to_be_visible()
    assert shown.service.token not in page.url
    [cookie] = page.context.cookies()
    assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == ("/ui", True, "Strict", -1)
    assert page.evaluate("document.cookie") == ""
    page.reload()
    expect(row_of(page, shown.completed.id)).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.context.cookies() == []
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_wrong_token_is_said_to_be_one_and_the_next_try_can_be_right(looks: Looks, shown: EveryState) -> None:
    looks.expect("401")
    page = looks.person(url=shown.service.url).new_page()
    page.goto("/ui/")
    page.get_by_label("Token").fill("bl-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The token is not one of this service's")
    assert axe(page) == []
    screenshot(page, "login-refused")
    page.get_by_label("Token").fill(shown.service.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


def test_a_session_whose_token_was_revoked_ends_at_the_login(looks: Looks, page_service: RunningService) -> None:
    looks.expect("401")
    token = token_of(page_service, "default", Scope.READ)
    page = logged_in(looks, page_service, token=token)
    [record] = [one for one in page_service.state.tokens.all() if token.endswith(one.last_four)]
    page_service.state.tokens.revoke(record.id)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The session has ended")
    expect(page.get_by_label("Token")).to_be_visible()


# Each page, light and dark.


def test_the_list_shows_every_state_and_nothing_goes_wrong(looks: Looks, shown: EveryState, scheme: str) -> None:
    page = logged_in(looks, shown.service, scheme)
    for batch in shown.batches.values():
        expect(row_of(page, batch.id)).to_be_visible()
    assert axe(page) == []
    screenshot(page, "list")


@pytest.mark.parametrize("state", STATES)
def test_each_part_of_a_batch_is_shown_and_nothing_goes_wrong(
    looks: Looks, shown: EveryState, scheme: str, state: str
) -> None:
    batch, page = shown.batches[state], logged_in(looks, shown.service, scheme)
    page.goto(f"/ui/?batch={batch.id}")
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("heading", name=batch.id)).to_be_visible()
        expect(page.locator(".blm-spinner")).to_have_count(0)
        assert axe(page) == [], tab
        screenshot(page, f"batch-{state}-{tab.lower()}")


def test_the_workers_are_shown_and_nothing_goes_wrong(looks: Looks, shown: EveryState, scheme: str) -> None:
    page = logged_in(looks, shown.service, scheme)
    shown.running.worker.claim()  # its heartbeat: it may have been silent while other tests looked
    page.get_by_role("link", name="Workers").click()
    expect(page.get_by_role("cell", name=re.compile("gpu-1")).first).to_be_visible()
    expect(page.get_by_text("mistralai/Mistral-7B")).to_be_visible()
    assert axe(page) == []
    screenshot(page, "workers")


def test_a_service_without_batches_says_how_one_comes(looks: Looks, page_service: RunningService, scheme: str) -> None:
    page = logged_in(looks, page_service, scheme)
    expect(page.get_by_text("No batches yet")).to_be_visible()
    assert axe(page) == []
    screenshot(page, "list-empty")


# The list.


def test_progress_is_seen_without_a_reload(looks: Looks, page_service: RunningService) -> None:
    moving = running(page_service, "posts", 50, LabellingWorker(page_service))
    page = logged_in(looks, page_service)
    page.evaluate("globalThis.notReloaded = true")
    row = row_of(page, moving.batch.id)
    expect(row).to_contain_text("0 / 50")
    moving.does(20)
    expect(row).to_contain_text("20 / 50")
    moving.finishes()
    assert page_service.assemble()
    expect(row).to_contain_text("Completed")
    new = submitted(page_service, "new", 5)
    expect(row_of(page, new.id)).to_be_visible()
    assert page.evaluate("globalThis.notReloaded")


def test_a_pause_between_two_words_of_a_search_eats_no_letter(looks: Looks, shown: EveryState) -> None:
    page = logged_in(looks, shown.service)
    field = page.get_by_label("Search batches")
    field.press_sequentially("label ")
    expect(page).to_have_url(re.compile("search=label"))
    field.press_sequentially("tick")
    expect(field).to_have_value("label tick")
    expect(page.get_by_text("No batch fits")).to_be_visible()


def test_the_list_is_filtered_searched_and_linked(looks: Looks, shown: EveryState) -> None:
    page = logged_in(looks, shown.service)
    page.get_by_role("combobox", name="Status").select_option("completed")
    expect(page.locator("tr[data-batch]")).to_have_count(2)
    page.get_by_role("combobox", name="Dag").select_option("label_reviews")
    expect(page.locator("tr[data-batch]")).to_have_count(1)
    expect(row_of(page, shown.completed.id)).to_be_visible()
    there = page.url
    page.goto("/ui/")
    page.get_by_label("Search batches").fill("LETTERS")
    expect(page.locator("tr[data-batch]")).to_have_count(1)
    expect(row_of(page, shown.waiting.id)).to_be_visible()
    page.get_by_label("Search batches").fill("nothing has this")
    page.get_by_role("button", name="Show all batches").click()
    expect(page.locator("tr[data-batch]")).to_have_count(len(shown.batches))
    page.goto(there)
    expect(page.locator("tr[data-batch]")).to_have_count(1)


def test_many_batches_come_in_pages(looks: Looks, page_service: RunningService) -> None:
    for number in range(53):
        submitted(page_service, f"t{number}", 1, plan=False)
    page = logged_in(looks, page_service)
    expect(page.get_by_text("1 to 50 of 53 batches")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("51 to 53 of 53 batches")).to_be_visible()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.go_back()
    expect(page.get_by_text("1 to 50 of 53 batches")).to_be_visible()


# A batch.


def test_rows_are_seen_with_their_prompts_and_answers(looks: Looks, shown: EveryState) -> None:
    page = logged_in(looks, shown.service)
    page.goto(f"/ui/?batch={shown.running.batch.id}&tab=rows")
    expect(page.get_by_text("What is this review about?").first).to_be_visible()
    expect(page.get_by_text("Cheaper than in the shop round the corner. (posts 0)").first).to_be_visible()


def test_the_target_is_downloaded_by_a_link(looks: Looks, shown: EveryState) -> None:
    page = logged_in(looks, shown.service)
    page.goto(f"/ui/?batch={shown.completed.id}&tab=rows")
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("Download")).first.click()
    target = shown.service.data_root / "reviews-labels.parquet"
    assert download.value.path().read_bytes() == target.read_bytes()


def test_a_batch_is_cancelled_after_one_question_and_it_is_said_by_whom(
    looks: Looks, page_service: RunningService
) -> None:
    worker = LabellingWorker(page_service)
    moving = running(page_service, "posts", 30, worker)
    moving.does(10)
    page = logged_in(looks, page_service)
    page.goto(f"/ui/?batch={moving.batch.id}")
    page.get_by_role("button", name="Cancel batch").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("10 of 30 rows are done")
    assert axe(page) == []
    screenshot(page, "cancel")
    dialog.get_by_role("button", name="Leave it as it is").click()
    expect(dialog).not_to_be_visible()
    assert page_service.client.get(moving.batch.id).status == "in_progress"
    page.get_by_role("button", name="Cancel batch").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel batch").click()
    expect(page.get_by_text(re.compile("first cancelled it"))).to_be_visible()
    expect(page.get_by_role("heading", name=moving.batch.id)).to_be_focused()
    assert page_service.client.get(moving.batch.id).status in ("cancelling", "cancelled")


def test_a_batch_is_paused_and_resumed(looks: Looks, page_service: RunningService) -> None:
    LabellingWorker(page_service)
    batch = submitted(page_service, "posts", 30)
    page = logged_in(looks, page_service)
    page.goto(f"/ui/?batch={batch.id}")
    for act, then in (("Pause", "Resume"), ("Resume", "Pause")):
        page.get_by_role("button", name=act, exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name=act, exact=True).click()
        expect(page.get_by_role("button", name=then, exact=True)).to_be_visible()
        assert page_service.client.get(batch.id).paused == ("requested" if act == "Pause" else None)
    expect(page.get_by_text(re.compile("first resumed it"))).to_be_visible()


def test_failed_rows_are_retried_in_a_new_generation(looks: Looks, page_service: RunningService) -> None:
    batch = submitted(page_service, "tickets", 10)
    LabellingWorker(page_service, failing=[2, 3]).work()
    assert page_service.assemble()
    page = logged_in(looks, page_service)
    page.goto(f"/ui/?batch={batch.id}")
    page.get_by_role("button", name="Retry failed rows").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 rows are asked again")
    page.get_by_role("dialog").get_by_role("button", name="Retry failed rows").click()
    page.wait_for_url(lambda url: batch.id not in url)
    [again] = [one for one in page_service.client.list().data if one.id != batch.id]
    assert (again.generation, again.id in page.url) == (2, True)
    expect(page.get_by_role("heading", name=again.id)).to_be_visible()
    assert page_service.plan()
    LabellingWorker(page_service).work()
    assert page_service.assemble()
    expect(page.get_by_role("heading", name=re.compile("Completed"))).to_be_visible()


def test_a_token_that_may_only_read_is_offered_no_act_and_may_do_none(
    looks: Looks, page_service: RunningService
) -> None:
    looks.expect("403")
    batch = submitted(page_service, "posts", 30)
    page = logged_in(looks, page_service, token=token_of(page_service, "default", Scope.READ))
    page.goto(f"/ui/?batch={batch.id}")
    expect(page.get_by_text("You may look at this batch, but not change it.")).to_be_visible()
    for act in ("Cancel batch", "Pause"):
        expect(page.get_by_role("button", name=act, exact=True)).to_be_disabled()
    forced = """id => fetch(`/ui/api/v1/batches/${id}/cancel`, {method: "POST", body: "{}",
        headers: {"Content-Type": "application/json", "X-Batch-LLM-Page": "1"}}).then((answer) => answer.status)"""
    assert page.evaluate(forced, batch.id) == 403
    assert page_service.client.get(batch.id).status == "in_progress"


def test_a_batch_that_is_not_there_is_said_to_be_gone(looks: Looks, shown: EveryState, scheme: str) -> None:
    looks.expect("404")
    page = logged_in(looks, shown.service, scheme)
    page.goto(f"/ui/?batch=batch_{'0' * 32}")
    expect(page.get_by_role("alert")).to_contain_text("There is no such batch")
    assert axe(page) == []
    screenshot(page, "batch-gone")


def test_a_service_that_is_away_is_said_to_be_and_the_page_recovers_by_itself(
    looks: Looks, restartable: Restartable
) -> None:
    looks.expect("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE_CHUNKED")
    service = restartable.start()
    batch = submitted(service, "posts", 30)
    page = logged_in(looks, service)
    expect(row_of(page, batch.id)).to_be_visible()
    restartable.stop()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer", timeout=30_000)
    expect(row_of(page, batch.id)).to_be_visible()
    assert axe(page) == []
    screenshot(page, "service-away")
    service = restartable.start()
    new = submitted(service, "new", 5, plan=False)
    expect(row_of(page, new.id)).to_be_visible(timeout=30_000)
    expect(page.get_by_role("alert")).to_have_count(0)


# Where the pages are.


def test_the_pages_work_below_the_path_of_a_proxy(
    looks: Looks, page_service: RunningService, below_a_path: str
) -> None:
    batch = submitted(page_service, "posts", 30)
    page = looks.person().new_page()
    page.goto(f"{below_a_path}/")
    page.get_by_label("Token").fill(page_service.token)
    page.keyboard.press("Enter")
    expect(row_of(page, batch.id)).to_be_visible()
    assert [cookie["path"] for cookie in page.context.cookies()] == ["/llm/ui"]
    page.get_by_role("link", name=batch.id[:14]).click()
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name=batch.id)).to_be_visible()
    assert page.url.startswith(f"{below_a_path}/ui/?")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.context.cookies() == []


def test_the_pages_of_another_site_get_no_cookie_with_them(looks: Looks, page_service: RunningService) -> None:
    looks.expect("ERR_FAILED", "CORS", "Failed to load resource", "40[13]")
    batch = submitted(page_service, "posts", 30)
    page = logged_in(looks, page_service)
    foreign = page.context.new_page()
    blank = {"body": "<title>x</title>", "content_type": "text/html"}
    foreign.route("http://elsewhere.example/**", lambda route: route.fulfill(**blank))
    foreign.goto("http://elsewhere.example/")
    tries = """async ([url, id]) => {
      const place = `${url}/ui/api/v1/batches/${id}/cancel`;
      const send = (options) => fetch(place, {method: "POST", credentials: "include", ...options}).catch(() => null);
      await send({mode: "no-cors", body: "{}"});
      await send({headers: {"Content-Type": "application/json", "X-Batch-LLM-Page": "1"}, body: "{}"});
      const form = Object.assign(document.createElement("form"), {method: "post", action: place});
      document.body.append(form);
      form.submit();
    }"""
    foreign.evaluate(tries, [page_service.url, batch.id])
    foreign.wait_for_url("**/cancel")
    assert page_service.client.get(batch.id).status == "in_progress"


def test_the_harness_sees_what_goes_wrong_in_a_page(looks: Looks, shown: EveryState) -> None:
    page = logged_in(looks, shown.service)
    page.evaluate("console.error('said so')")
    page.evaluate("setTimeout(() => { throw new Error('thrown') })")
    page.evaluate("fetch('/ui/static/none.js')")
    page.evaluate("document.body.append(document.createElement('img'))")
    eventually(lambda: page.title() and len(looks.unexpected()) >= 3, what="all troubles are noted")
    noted = " ".join(looks.unexpected())
    assert all(word in noted for word in ("said so", "thrown", "404: "))
    assert [finding.split(":")[0] for finding in axe(page)] == ["critical image-alt"]
    looks.troubles.clear()
