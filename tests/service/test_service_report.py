"""The report on a batch over real HTTP: what it tells of each kind of batch, and when it answers."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from airflow_batch_llm.models import CHAT_COMPLETIONS, TOKENIZE, Scope
from airflow_batch_llm.page_wire import BatchReport
from airflow_batch_llm.service import report_routes
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import Batch, BatchCancel
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.keeping import House, answered, cancelled_after, submit
from tests.service.requests import create, file_of, line, openai_client
from tests.service.test_service_events import SOON, Events, events, later, quick, standing_events
from tests.service.two_teams import token_of

__all__ = ["events", "quick", "standing_events"]


def asked(service: RunningService | Events, batch_id: str, token: str = "", **query: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token or service.token}"}
    return httpx.get(f"{service.url}/v1/batches/{batch_id}/report", params=query, headers=headers, timeout=60)


def report(service: RunningService | Events, batch: Batch, **query: Any) -> BatchReport:
    response = asked(service, batch.id, **query)
    assert response.status_code == 200, response.text
    return BatchReport.model_validate(response.json())


def act(service: RunningService, batch: Batch, verb: str, token: str = "", **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token or service.token}"}
    return httpx.post(f"{service.url}/v1/batches/{batch.id}/{verb}", json=body or None, headers=headers)


def names(told: BatchReport) -> list[str]:
    return [phase.name for phase in told.phases]


def rows(told: BatchReport) -> int:
    assert told.timeline is not None
    return sum(bucket.rows for bucket in told.timeline.buckets)


@BOTH_STORES
def test_a_batch_is_told_from_its_submit_to_its_end(service: RunningService) -> None:
    batch = submit(service, plan=False)
    told = report(service, batch)
    assert (names(told), told.timeline, told.plan, told.attempts) == (["planning"], None, None, None)
    assert told.batch == batch
    service.plan()
    told = report(service, batch)
    assert told.plan is not None
    assert (names(told), told.plan.rows_asked, told.plan.chunks_pending) == (["planning", "waiting"], 3, 1)
    assert told.plan.prefix_share is None
    worker = AnsweringWorker(service, name="gpu")
    claim, lines = worker.claim() or (None, [])
    assert claim is not None
    worker.link.extend(claim, [worker.store(claim, 0, lines[:2])])
    told = report(service, batch)
    assert (names(told), rows(told)) == (["planning", "waiting", "running"], 2)
    assert [(one.name, one.chunks, one.rows_done) for one in told.workers] == [("gpu", 1, 2)]
    assert told.attempts is not None
    assert (told.attempts.total, told.attempts.outcomes) == (1, {"running": 1})
    worker.link.commit(claim, [worker.store(claim, 1, lines[2:])])
    service.assemble()
    told = report(service, batch)
    assert told.batch == service.client.get(batch.id)
    assert names(told) == ["planning", "waiting", "running", "assembling"]
    assert all(phase.ended_at is not None for phase in told.phases)
    assert (rows(told), told.workers) == (3, [])
    assert told.plan is not None
    assert (told.plan.chunks_done, told.plan.chunks_total, told.plan.prefix_share) == (1, 1, 0.0)


def test_a_batch_of_a_request_file_is_told_like_a_table(service: RunningService) -> None:
    created = create(openai_client(service), file_of([line(number) for number in range(3)]))
    service.plan()
    AnsweringWorker(service, model="m").work()
    service.assemble()
    told = report(service, service.client.get(created.id))
    assert (names(told)[-1], rows(told)) == ("assembling", 3)
    assert told.plan is not None
    assert told.plan.rows_asked == 3


def test_rows_that_needed_no_engine_are_done_before_the_first_commit(service: RunningService) -> None:
    """Reused, those of an earlier generation, duplicates and those that cannot be asked."""
    AnsweringWorker(service, engine_identity="e")
    answered(service, submit(service, ["a", "b"], "first"))
    batch = cancelled_after(service, submit(service, ["a", "b", "c", "d", "d", "e"], "second", key="k"), 1)
    again = service.client.retry(batch.id)
    service.plan()
    told = report(service, again)
    assert told.plan is not None
    plan, batch = told.plan, service.client.get(again.id)
    assert (plan.rows_total, plan.rows_duplicate, plan.rows_asked) == (6, 1, 2)
    assert batch.progress.rows_done == plan.rows_total - plan.rows_duplicate - plan.rows_asked == 3
    assert rows(told) == 0
    told = report(service, answered(service, again))
    assert (rows(told), told.plan.rows_asked if told.plan else None) == (2, 2)


def test_a_batch_that_needs_no_engine_at_all_has_a_story_too(service: RunningService) -> None:
    AnsweringWorker(service, engine_identity="e")
    answered(service, submit(service, ["a", "b"], "first"))
    batch = submit(service, ["a", "b"], "second")
    service.assemble()
    told = report(service, batch)
    assert told.batch is not None
    assert (told.batch.status, names(told)) == ("completed", ["planning", "assembling"])
    assert told.plan is not None
    assert (told.plan.rows_reused, told.plan.rows_asked, rows(told)) == (2, 0, 0)


def test_a_failed_batch_has_planned_alone(service: RunningService) -> None:
    batch = submit(service, plan=False)
    pq.write_table(pa.table({"text": ["x"], "llm_status": ["taken"]}), service.data_root / "s.parquet")
    service.plan()
    told = report(service, batch)
    assert told.batch is not None
    assert (told.batch.status, names(told), told.plan) == ("failed", ["planning"], None)
    assert told.phases[0].ended_at is not None


def test_a_dry_run_costs_nothing_and_says_what_would_be_asked(service: RunningService) -> None:
    worker = AnsweringWorker(service, endpoints=[CHAT_COMPLETIONS, TOKENIZE], engine_identity="e")
    batch = submit(service, ["a", "a", "b"], dry_run=True)
    worker.work()
    service.assemble()
    told = report(service, batch)
    assert told.batch is not None
    assert told.plan is not None
    assert told.batch.estimate is not None
    assert (told.plan.rows_asked, told.plan.rows_duplicate) == (told.batch.estimate.rows_asked, 1) == (2, 1)
    assert (told.cost, told.plan.prefix_share) == (None, None)


def test_the_cost_is_at_the_services_prices(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = answered(service, submit(service))
    priced = dataclasses.replace(
        service.settings, gpu_hour_price=3.6, api_input_price=2.0, api_output_price=1.0, currency="EUR"
    )
    assert report(service, batch).cost is not None
    with service.state.database.writing() as connection:
        connection.execute(update(batches).values(prompt_tokens=10**6, gpu_seconds=1000.0))
    with _priced(service, priced):
        cost = report(service, batch).cost
    assert cost is not None
    assert (cost.currency, cost.own, cost.api, cost.saving) == ("EUR", pytest.approx(1.0), 2.0, pytest.approx(0.5))


@contextmanager
def _priced(service: RunningService, settings: Any) -> Iterator[None]:
    """The running service at other prices: its state is one that nobody changes but a test."""
    before = service.state.settings
    object.__setattr__(service.state, "settings", settings)
    yield
    object.__setattr__(service.state, "settings", before)


@BOTH_STORES
def test_what_was_cleaned_away_of_a_batch_leaves_its_story(service: RunningService) -> None:
    house = House(service, keep_seconds=86_400)
    batch = answered(service, submit(service))
    before = report(service, batch)
    house.later(days=3)
    assert house.of(batch) == set()
    after = report(service, batch)
    assert after.model_dump(exclude={"version", "at"}) == before.model_dump(exclude={"version", "at"})
    house.later(days=400)
    assert asked(service, batch.id).status_code == 404


def test_a_report_is_no_look_at_the_batch(service: RunningService) -> None:
    batch = submit(service, holder="h", pause_unwatched_after=600)
    with service.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    told = report(service, batch)
    report(service, batch, version="other", wait=0.01)
    service.state.watching.pause_due()
    told = report(service, batch)
    assert told.batch is not None
    assert told.batch.paused == "unwatched"
    assert [(line.act, line.by) for line in told.acts] == [("submit", "first")]


def test_who_acts_is_the_person_that_the_call_names_or_else_the_token(service: RunningService) -> None:
    batch = submit(service)
    for verb in ("pause", "resume"):
        assert act(service, batch, verb).status_code == 200
        assert act(service, batch, verb, by="ann").status_code == 200  # a second time: not noted
    assert act(service, batch, "pause", by="bob").status_code == 200
    assert act(service, batch, "resume", by="cid").status_code == 200
    assert act(service, batch, "cancel", by="dora").status_code == 200
    service.assemble()
    again = act(service, batch, "retry", by="eve").json()
    said = ["submit first", "pause first", "resume first", "pause bob", "resume cid", "cancel dora", "retry eve"]
    told = report(service, batch)
    assert [f"{line.act} {line.by}" for line in reversed(told.acts)] == said
    assert [line.id for line in told.generations] == [again["id"], batch.id]
    assert [f"{line.act} {line.by}" for line in report(service, service.client.get(again["id"])).acts] == ["retry eve"]


@pytest.mark.parametrize("verb", ["cancel", "retry", "pause", "resume"])
@pytest.mark.parametrize("body", [{"by": ""}, {"by": "x" * 129}, {"by": 7}, {"who": "ann"}])
def test_a_body_that_names_nobody_rightly_is_refused(service: RunningService, verb: str, body: dict[str, Any]) -> None:
    batch = submit(service, plan=False)
    assert act(service, batch, verb, **body).status_code == 400
    assert [line.act for line in report(service, batch).acts] == ["submit"]


def test_an_act_by_another_token_bears_that_tokens_name(service: RunningService) -> None:
    batch = submit(service, plan=False)
    token = token_of(service, "default", Scope.SUBMIT, Scope.READ)
    assert act(service, batch, "cancel", token).status_code == 200
    assert report(service, batch).acts[0].by == "test"


@pytest.mark.parametrize(("scope", "may"), [(Scope.SUBMIT, True), (Scope.ADMIN, True), (Scope.WORKER, False)])
def test_a_report_says_whether_its_token_may_act_on_the_batch(service: RunningService, scope: Scope, may: bool) -> None:
    batch = submit(service)
    token = token_of(service, "default", Scope.READ, scope)
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{service.url}/v1/batches/{batch.id}"
    report = httpx.get(f"{url}/report", headers=headers).json()
    again = httpx.get(f"{url}/report", params={"version": report["version"]}, headers=headers).json()
    assert again["batch"] is None
    assert report["may_act"] is again["may_act"] is may
    assert (httpx.post(f"{url}/pause", headers=headers).status_code == 200) is may


def test_a_service_without_extensions_notes_the_token_whatever_the_call_says(service: RunningService) -> None:
    batch = submit(service, plan=False)
    with _priced(service, dataclasses.replace(service.settings, extensions=False)):
        assert act(service, batch, "cancel", **BatchCancel(by="ann").model_dump(exclude_none=True)).status_code == 200
    assert report(service, batch).acts[0].by == "first"


def test_a_report_that_the_caller_has_is_not_sent_again(service: RunningService) -> None:
    batch = submit(service)
    told = report(service, batch)
    again = report(service, batch, version=told.version)
    assert again.model_dump(exclude={"at"}) == BatchReport(version=told.version, at=0).model_dump(exclude={"at"})
    assert again.at >= told.at
    AnsweringWorker(service).claim()
    new = report(service, batch, version=told.version)  # what no change of the batch itself tells
    assert new.version != told.version
    assert len(new.workers) == 1


def test_a_waiting_call_answers_when_the_batch_changes(service: RunningService, events: Events) -> None:
    batch = submit(service)
    told = report(events, batch)
    thread, answers = later(lambda: report(events, batch, version=told.version, wait=25))
    eventually(lambda: events.changes.waiting == 1)
    assert not answers
    service.client.pause(batch.id)
    thread.join(SOON)
    assert answers[0].batch.paused == "requested"
    assert answers[0].acts[0].act == "pause"


def test_a_wait_in_which_nothing_happens_ends_with_nothing_new(service: RunningService, events: Events) -> None:
    batch = submit(service)
    told = report(events, batch)
    answer = report(events, batch, version=told.version, wait=0.1)
    assert (answer.version, answer.batch, answer.plan) == (told.version, None, None)


def test_a_wait_finds_at_its_end_what_is_no_change_of_the_batch_itself(service: RunningService, events: Events) -> None:
    batch = submit(service)
    told = report(events, batch)
    AnsweringWorker(service).claim()
    answer = report(events, batch, version=told.version, wait=0.1)
    assert answer.plan is not None
    assert answer.plan.chunks_leased == 1


def test_who_asks_again_and_again_about_a_batch_that_always_changes_is_held_back(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def noted(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(report_routes, "LEAST_SECONDS", 1_000.0)  # however slow the machine is
    monkeypatch.setattr(report_routes, "sleep", noted)
    batch = submit(service)
    for query in ({}, {"version": "other"}, {"wait": 25}):  # who does not wait for another one has it at once
        assert report(events, batch, **query).batch is not None
    assert slept == []
    assert report(events, batch, version="other", wait=25).batch is not None
    assert len(slept) == 1
    assert 0 < slept[0] <= 25


@pytest.mark.parametrize("held", [False, True], ids=["for a change", "for its turn"])
def test_a_wait_ends_when_the_client_hangs_up(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    ended: list[bool | None] = []
    sleeps: list[float] = []
    waiting = report_routes.while_connected

    async def noted(*arguments: Any) -> bool | None:
        ended.append(await waiting(*arguments))
        return ended[-1]

    async def endless(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.Event().wait()

    monkeypatch.setattr(report_routes, "while_connected", noted)
    monkeypatch.setattr(report_routes, "sleep", endless)
    batch = submit(service)
    version = "other" if held else report(events, batch).version
    request = (
        f"GET /v1/batches/{batch.id}/report?version={version}&wait=25 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {events.token}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", int(events.url.rpartition(":")[2]))) as connection:
        connection.sendall(request.encode())
        eventually(lambda: sleeps if held else events.changes.waiting == 1)
        assert ended == []
    eventually(lambda: ended == [None], seconds=SOON)
    assert (events.changes.waiting, len(sleeps)) == (0, int(held))


def test_a_batch_that_is_deleted_during_a_wait_is_gone(service: RunningService, events: Events) -> None:
    batch = answered(service, submit(service))
    told = report(events, batch)
    thread, answers = later(lambda: asked(events, batch.id, version=told.version, wait=25))
    eventually(lambda: events.changes.waiting == 1)
    service.state.batches.delete("default", batch.id)
    thread.join(SOON)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (404, "batch_not_found")


@pytest.mark.parametrize("query", [{"wait": 26}, {"wait": -1}, {"wait": "nan"}, {"version": "v" * 65}])
def test_a_wrong_question_is_refused_with_the_name_of_what_is_wrong(
    service: RunningService, query: dict[str, Any]
) -> None:
    answer = asked(service, submit(service, plan=False).id, **query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))
