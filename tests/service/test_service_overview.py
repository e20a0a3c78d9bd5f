"""The list of batches over real HTTP: what a page shows, and how it waits for another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from airflow_batch_llm.page_wire import Overview
from airflow_batch_llm.service import changes as changes_module
from airflow_batch_llm.service import overview as overview_module
from airflow_batch_llm.store.tables import batches, parts
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message, Origin
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_events import Events, start

pytestmark = BOTH_STORES

ORIGIN = Origin(deployment="http://air", dag_id="reviews", task_id="classify", run_id="r1")
LONG = 25.0
"""Seconds: as long as a page may wait."""
SOON = 15.0
"""Far more than anything here takes: who is not answered by then waited for nothing."""


@pytest.fixture(scope="module")
def standing_events() -> Iterator[dict[str, Events]]:
    """By the URL of the service that they are of: a service of which a test sees who waits."""
    started: dict[str, Events] = {}
    yield started
    for events in started.values():
        events.end()


@pytest.fixture
def events(service: RunningService, standing_events: dict[str, Events]) -> Events:
    if service.url not in standing_events:
        standing_events[service.url] = start(service)
    return standing_events[service.url]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_SECONDS", 0.02)


def submit(service: RunningService, key: str, origin: Origin | None = ORIGIN, **more: Any) -> Batch:
    if not (service.data_root / "s.parquet").exists():
        pq.write_table(pa.table({"text": [f"{number}" for number in range(10)]}), service.data_root / "s.parquet")
    messages = [Message(role="user", content=f"{key} {{text}}")]
    spec = DatasetSpec(source="s.parquet", target=f"{key}.parquet", messages=messages)
    return service.client.submit(BatchCreate(dataset=spec, model="m", key=key, origin=origin, **more))


def planned(service: RunningService, key: str, **more: Any) -> Batch:
    batch = submit(service, key, **more)
    while service.plan():
        pass
    return batch


def ask(events: Events, *, timeout: float = SOON, **asked: Any) -> Overview:
    response = httpx.post(
        f"{events.url}/v1/batches/overview",
        headers={"Authorization": f"Bearer {events.token}"},
        json=asked,
        timeout=timeout,
    )
    assert response.status_code == 200, response.text
    return Overview.model_validate_json(response.content)


def ids(overview: Overview) -> list[str]:
    return [line.id for line in overview.data or ()]


@contextmanager
def waiting(events: Events, **asked: Any) -> Iterator[Callable[[], Overview]]:
    """A call that waits meanwhile; what is given gives its answer."""
    answers: list[Overview] = []
    thread = threading.Thread(target=lambda: answers.append(ask(events, **asked)))
    thread.start()
    eventually(lambda: events.changes.waiting, what="the call waits")

    def answer() -> Overview:
        thread.join()
        return answers[0]

    yield answer
    thread.join()


def test_a_line_has_what_a_list_shows_of_a_batch(service: RunningService, events: Events) -> None:
    batch = planned(service, "k", priority=7)
    overview = ask(events)
    [line] = overview.data or []
    assert (line.id, line.status, line.model, line.priority, line.origin) == (batch.id, "in_progress", "m", 7, ORIGIN)
    assert (line.target, line.generation, line.ended_at) == ("k.parquet", 1, None)
    assert (line.progress.rows_total, line.progress.rows_done) == (10, 0)
    assert "no living worker serves model 'm'" in (line.progress.waiting_for or "")
    assert (overview.total, overview.statuses) == (1, {"in_progress": 1})
    assert (overview.models, overview.dag_ids) == (["m"], ["reviews"])
    answer_all(service, batch)
    [line] = ask(events).data or []
    batch = service.client.get(batch.id)
    assert (line.status, line.ended_at, line.progress.rows_done) == ("completed", batch.completed_at, 10)
    assert (line.created_at, line.target) == (batch.created_at, batch.dataset and batch.dataset.target)


def test_the_total_counts_all_pages_and_the_statuses_all_statuses(service: RunningService, events: Events) -> None:
    made = [submit(service, f"k{number}").id for number in range(5)]
    service.client.cancel(made[0])
    overview = ask(events, status=["validating"], limit=2, offset=2)
    assert (ids(overview), overview.total) == ([made[2], made[1]], 4)
    assert overview.statuses == {"validating": 4, "cancelled": 1}


def test_a_running_batch_has_its_rate_and_its_time_left_as_everywhere(service: RunningService, events: Events) -> None:
    batch = planned(service, "k")
    worker = AnsweringWorker(service)
    claim, lines = worker.claim() or pytest.fail("nothing to claim")
    worker.link.extend(claim, [worker.store(claim, 0, lines[:4])])
    [line] = ask(events).data or []
    shown = service.client.get(batch.id).progress
    assert line.progress.rows_done == shown.rows_done == 4
    assert line.progress.rows_per_second == pytest.approx(shown.rows_per_second, rel=0.5)
    assert line.progress.eta_seconds == pytest.approx(shown.eta_seconds, rel=0.5)
    assert line.progress.waiting_for is None


def test_what_a_person_may_not_see_is_in_no_field(service: RunningService, events: Events) -> None:
    seen = submit(service, "seen")
    for name, origin in (("secret", ORIGIN.model_copy(update={"dag_id": "secret"})), ("secret-too", None)):
        service.client.cancel(submit(service, name, origin).id)
    everything = {"seen": ask(events), "visible": ask(events, visible_dag_ids=["reviews"])}
    assert everything["seen"].total == 3
    assert "secret" in everything["seen"].model_dump_json()
    visible = everything["visible"]
    assert "secret" not in visible.model_dump_json()
    assert (ids(visible), visible.total, visible.statuses) == ([seen.id], 1, {"validating": 1})
    assert ask(events, visible_dag_ids=[]).model_dump(include={"data", "total", "statuses", "models", "dag_ids"}) == {
        "data": [], "total": 0, "statuses": {}, "models": [], "dag_ids": []
    }  # fmt: skip


def test_a_version_stays_while_nothing_changes_and_the_answer_is_short_then(
    service: RunningService, events: Events
) -> None:
    submit(service, "k")
    first = ask(events)
    again = ask(events, version=first.version)
    assert (again.version, again.data, again.total) == (first.version, None, 1)
    waited = ask(events, version=first.version, wait=0.1)
    assert (waited.version, waited.data, waited.statuses) == (first.version, None, {"validating": 1})
    assert ask(events, version="another", wait=LONG).data == first.data


def test_a_page_waits_for_a_change_of_a_batch_on_it(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview_module, "AGAIN_SECONDS", LONG)  # the change itself ends the wait
    batch = submit(service, "k")
    with waiting(events, version=ask(events).version, wait=LONG) as answer:
        service.client.cancel(batch.id)
        [line] = answer().data or []
    assert line.status == "cancelled"


@pytest.mark.parametrize("offset", [0, 1])
def test_a_page_waits_for_a_batch_that_is_new_to_its_filters(
    service: RunningService, events: Events, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on an empty page, and where only the counts tell of it."""
    monkeypatch.setattr(overview_module, "AGAIN_SECONDS", 0.05)
    asked = {"dag_ids": ["reviews"], "offset": offset}
    with waiting(events, **asked, version=ask(events, **asked).version, wait=LONG) as answer:
        submit(service, "other", ORIGIN.model_copy(update={"dag_id": "other"}))
        batch = submit(service, "k")
        shown = answer()
    # What there is to filter by is told as well, so the other Dag alone may have been news.
    while shown.total == 0:
        shown = ask(events, **asked, version=shown.version, wait=LONG)
    assert (shown.total, ids(shown)) == (1, [batch.id][offset:])


def test_a_rate_that_fades_is_told_without_any_change_of_a_batch(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview_module, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(overview_module, "RATE_ALONE_SECONDS", 0.05)
    batch = planned(service, "k")
    worker = AnsweringWorker(service)
    claim, lines = worker.claim() or pytest.fail("nothing to claim")
    worker.link.extend(claim, [worker.store(claim, 0, lines[:4])])
    with service.state.database.writing() as connection:  # long in progress: the rate is over a whole minute
        connection.execute(update(batches).where(batches.c.id == batch.id).values(in_progress_at=1.0))
    before = ask(events)
    with waiting(events, version=before.version, wait=LONG) as answer:
        with service.state.database.writing() as connection:
            connection.execute(update(parts).values(committed_at=1.0))
        faded = answer()
    [line] = faded.data or []
    assert (line.progress.rows_per_second, line.progress.rows_done) == (None, 4)
    assert before.version.partition(".")[0] == faded.version.partition(".")[0]


def test_a_client_that_hangs_up_ends_its_wait(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview_module, "AGAIN_SECONDS", LONG)  # or nobody waits for a moment between two looks
    submit(service, "k")
    version = ask(events).version
    with pytest.raises(httpx.ReadTimeout):
        ask(events, version=version, wait=LONG, timeout=0.5)
    eventually(lambda: events.changes.waiting == 0, seconds=SOON, what="nobody waits any more")


def test_who_looks_at_the_list_watches_no_batch(service: RunningService, events: Events) -> None:
    batch = submit(service, "k", holder="h", pause_unwatched_after=120)
    service.plan()
    with service.state.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == batch.id).values(unwatched_at=1.0))
    service.state.watching.pause_due()
    ask(events, batch_ids=[batch.id])
    ask(events, version=ask(events).version, wait=0.05)
    [line] = ask(events).data or []
    assert (line.paused, line.status) == ("unwatched", "in_progress")
    assert ask(events).statuses == {"paused": 1}


def test_an_origin_is_kept_through_retries_and_has_no_effect(service: RunningService, events: Events) -> None:
    first = submit(service, "k")
    assert first.origin == ORIGIN
    assert submit(service, "k", ORIGIN.model_copy(update={"run_id": "r2"})).id == first.id
    assert service.client.get(first.id).origin == ORIGIN
    service.client.cancel(first.id)
    answer_all(service, first)
    again = service.client.retry(first.id)
    assert (again.generation, again.origin) == (2, ORIGIN)
    assert submit(service, "other", None).origin is None
