"""A batch with ``pause_unwatched_after``, as its client sees it: every way to look at it lets it go on."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import update

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import supervisor
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import Batch
from tests.conftest import RunningService, eventually
from tests.service.answering import AnsweringWorker
from tests.service.keeping import answered, submit


def _unwatched(service: RunningService) -> Batch:
    """A batch that has just been paused since nobody watches it."""
    batch = submit(service, holder="h", pause_unwatched_after=600)
    with service.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    service.state.watching.pause_due()
    return batch


def _get(service: RunningService, batch: Batch) -> None:
    service.client.get(batch.id)


def _watch(service: RunningService, batch: Batch) -> None:
    url, headers = f"{service.url}/v1/batches/watch", {"Authorization": f"Bearer {service.token}"}
    [changed] = httpx.post(url, headers=headers, json={"batches": {batch.id: None}}).json()["changed"]
    assert changed["batch"]["paused"] is None


def _events(service: RunningService, batch: Batch) -> None:
    url, headers = f"{service.url}/v1/batches/{batch.id}/events", {"Authorization": f"Bearer {service.token}"}
    with httpx.stream("GET", url, headers=headers) as response:
        assert '"paused":null' in next(line for line in response.iter_lines() if line.startswith("data:"))


@pytest.mark.parametrize("look", [_get, _watch, _events])
def test_a_look_at_the_batch_lets_it_go_on(
    service: RunningService, look: Callable[[RunningService, Batch], None]
) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    batch = _unwatched(service)
    assert worker.claim() is None
    look(service, batch)
    seen = service.client.get(batch.id)
    assert (seen.paused, seen.pause_unwatched_after) == (None, 600)
    assert answered(service, batch).status == "completed"


def test_a_service_pauses_by_itself_what_nobody_watches(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PROCESSES", ())
    monkeypatch.setattr(supervisor, "TIDY_SECONDS", 0.05)
    submit(service, holder="h", pause_unwatched_after=600)
    with service.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    state = service.state
    keeper = supervisor.Supervisor(service.settings, state.duties, state.life, state.watching)
    keeper.start()
    eventually(lambda: service.client.list().data[0].paused == "unwatched", what="the batch is paused")
    keeper.stop()


def test_a_list_is_no_look_and_says_why_the_batch_waits(service: RunningService) -> None:
    batch = _unwatched(service)
    for _ in range(2):
        [seen] = service.client.list().data
        assert (seen.id, seen.paused) == (batch.id, "unwatched")
        assert seen.progress.waiting_for == "It is paused since nobody watches it, and goes on once somebody does."


def test_a_batch_that_nobody_holds_is_refused(service: RunningService) -> None:
    with pytest.raises(InvalidRequestError, match="needs a `holder`: a batch that nobody holds is to go on by itself"):
        submit(service, pause_unwatched_after=600)


@pytest.mark.parametrize("seconds", [119, 30 * 86_400 + 1])
def test_a_time_that_is_too_short_or_too_long_is_refused(service: RunningService, seconds: int) -> None:
    with pytest.raises(ValueError, match="pause_unwatched_after"):
        submit(service, holder="h", pause_unwatched_after=seconds)
