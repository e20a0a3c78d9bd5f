"""Changes of batches over real HTTP: as a stream of one batch, and as one call for thousands."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import fastapi.routing
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pool import free_port
from sqlalchemy import delete, update

from airflow_batch_llm.service import changes as changes_module
from airflow_batch_llm.service import event_routes
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.changes import Changes, Watch
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.changes import BatchChanges, Seen, statuses_seen
from airflow_batch_llm.store.database import Database, StoreTroubleError
from airflow_batch_llm.store.tables import batches, tokens
from airflow_batch_llm.wire import Batch
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES, BOTH_STORES_IF_WHOLE
from tests.service.answering import AnsweringWorker
from tests.service.test_service_bad_input import submit
from tests.store.test_store_chunks import TEAM, Store, store

pytestmark = BOTH_STORES_IF_WHOLE

__all__ = ["store"]

SOON = 10.0
"""Far more than anything here takes, far less than a client would wait."""


def app_with_events(state: ServiceState) -> FastAPI:
    app = create_app(state)
    if not hasattr(app.state, "changes"):
        app.state.changes = Changes(BatchChanges(state.database))
        app.include_router(event_routes.router)
    return app


class Server(uvicorn.Server):
    """As the service runs it: who waits for changes is let go before connections are waited for."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.changes.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)


@dataclass
class Events:
    """A service with the routes of this module; ``changes`` is what its clients wait in."""

    url: str
    token: str
    changes: Changes
    server: Server
    thread: threading.Thread

    def watch(self, seen: dict[str, str | None], *, token: str = "", **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        body = {"batches": seen, **body}
        return httpx.post(f"{self.url}/v1/batches/watch", headers=headers, json=body, timeout=70)

    def version(self, batch: Batch) -> str:
        return str(self.watch({batch.id: None}).json()["changed"][0]["version"])

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def start(service: RunningService) -> Events:
    app = app_with_events(service.state)
    port = free_port()
    server = Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=60))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    return Events(f"http://127.0.0.1:{port}", service.token, app.state.changes, server, thread)


@pytest.fixture(scope="module")
def standing_events() -> Iterator[dict[str, Events]]:
    """By the URL of the service that they are of."""
    started: dict[str, Events] = {}
    yield started
    for events in started.values():
        events.end()


@pytest.fixture
def events(service: RunningService, standing_events: dict[str, Events]) -> Events:
    if service.url not in standing_events:
        standing_events[service.url] = start(service)
    (service.data_root / "s.jsonl").write_text("".join(f'{{"a": {number}}}\n' for number in range(7)))
    return standing_events[service.url]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_SECONDS", 0.02)


@dataclass
class Stream:
    """What a client of ``/events`` reads, as it comes."""

    response: httpx.Response
    ids: list[str] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    comments: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def statuses(self) -> list[str]:
        """The statuses in the order in which they came, each once."""
        return list(dict.fromkeys(batch["status"] for batch in self.batches))

    def read(self) -> None:
        with suppress(httpx.TransportError):  # broken off
            for line in self.response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.ids.append(value)
                elif name == "data":
                    self.batches.append(json.loads(value))
                elif name == "event":
                    self.names.add(value)
                elif line:
                    self.comments.append(value)
            self.closed = True


@contextmanager
def streaming(events: Events, batch: Batch, last: str | None = None) -> Iterator[Stream]:
    headers = {"Authorization": f"Bearer {events.token}"} | ({"Last-Event-ID": last} if last else {})
    url = f"{events.url}/v1/batches/{batch.id}/events"
    with httpx.Client(timeout=SOON) as http, http.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = Stream(response)
        thread = threading.Thread(target=stream.read, daemon=True)
        thread.start()
        yield stream
        if not stream.closed:  # wakes the reading thread, and tells the service
            response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        thread.join()


def later(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def end(service: RunningService) -> None:
    """Does what there is to do for all batches."""
    while service.plan():
        pass
    AnsweringWorker(service).work()
    while service.assemble():
        pass


def test_a_stream_tells_a_batch_from_its_submit_to_its_end_and_closes(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    with streaming(events, batch) as stream:
        eventually(lambda: stream.statuses == ["validating"])
        assert service.plan()
        eventually(lambda: stream.statuses == ["validating", "in_progress"])
        worker = AnsweringWorker(service, part_rows=3)
        claim, lines = worker.claim() or pytest.fail("there is no chunk")
        worker.link.extend(claim, [worker.store(claim, 0, lines[:3])])
        eventually(lambda: stream.batches[-1]["progress"]["rows_done"] == 3)
        worker.link.commit(claim, [worker.store(claim, 1, lines[3:])])
        eventually(lambda: stream.statuses[-1] == "finalizing")
        assert service.assemble()
        eventually(lambda: stream.closed)
    assert stream.statuses == ["validating", "in_progress", "finalizing", "completed"]
    assert stream.batches[-1] == service.client.get(batch.id).model_dump(mode="json")
    assert len(set(stream.ids)) == len(stream.batches)
    assert stream.names == {"batch"}


def test_a_stream_tells_a_cancel(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    with streaming(events, batch) as stream:
        eventually(lambda: stream.batches)
        service.client.cancel(batch.id)
        eventually(lambda: stream.closed)
    assert stream.statuses == ["validating", "cancelled"]


def test_a_stream_that_is_taken_up_again_tells_only_what_is_new(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    with streaming(events, batch) as first:
        eventually(lambda: first.ids)
    with streaming(events, batch, last=first.ids[-1]) as second:
        eventually(lambda: events.changes.waiting == 1)
        assert not second.batches
        service.client.cancel(batch.id)
        eventually(lambda: second.closed)
    assert second.statuses == ["cancelled"]
    with streaming(events, batch, last=second.ids[-1]) as third:
        eventually(lambda: third.closed)
    assert not third.batches
    with streaming(events, batch, last=first.ids[-1]) as fourth:
        eventually(lambda: fourth.closed)
    assert fourth.ids == second.ids


def test_a_stream_on_which_nothing_happens_is_kept_alive(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastapi.routing._PING_INTERVAL == 15.0
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    with streaming(events, submit(service, "s.jsonl", "t.jsonl")) as stream:
        eventually(lambda: len(stream.comments) > 1)
    assert len(stream.batches) == 1


def test_a_client_that_hangs_up_is_forgotten(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    with streaming(events, batch):
        eventually(lambda: events.changes.waiting == 1)
    eventually(lambda: events.changes.waiting == 0, seconds=SOON)
    body = json.dumps({"batches": {batch.id: events.version(batch)}, "wait": 60})
    request = (
        f"POST /v1/batches/watch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {events.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    with socket.create_connection(("127.0.0.1", int(events.url.rpartition(":")[2]))) as connection:
        connection.sendall(request.encode())
        eventually(lambda: events.changes.waiting == 1)
    eventually(lambda: events.changes.waiting == 0, seconds=SOON)


def test_a_watch_answers_at_once_where_something_differs(service: RunningService, events: Events) -> None:
    known, new = (submit(service, "s.jsonl", f"{name}.jsonl") for name in "tu")
    answer = events.watch({known.id: events.version(known), new.id: None}, wait=60).json()
    assert [changed["batch"]["id"] for changed in answer["changed"]] == [new.id]
    assert answer["changed"][0]["batch"] == service.client.get(new.id).model_dump(mode="json")
    assert (answer["gone"], answer["has_more"]) == ([], False)
    seen = {known.id: events.version(known), new.id: answer["changed"][0]["version"]}
    for wait in (0, 0.1):
        assert events.watch(seen, wait=wait).json() == {"changed": [], "gone": [], "has_more": False}


def test_a_watch_waits_for_the_first_change(service: RunningService, events: Events) -> None:
    watched = [submit(service, "s.jsonl", f"{name}.jsonl") for name in "tuv"]
    seen: dict[str, str | None] = {batch.id: events.version(batch) for batch in watched}
    thread, answers = later(lambda: events.watch(seen, wait=60).json())
    eventually(lambda: events.changes.waiting == 1)
    assert not answers
    service.client.cancel(watched[1].id)
    thread.join(SOON)
    assert [changed["batch"]["status"] for changed in answers[0]["changed"]] == ["cancelled"]
    assert answers[0]["changed"][0]["batch"]["id"] == watched[1].id


def test_a_watch_of_statuses_lets_rows_go_by(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    assert service.plan()
    seen: dict[str, str | None] = {batch.id: events.version(batch)}
    worker = AnsweringWorker(service)
    claim, lines = worker.claim() or pytest.fail("there is no chunk")
    worker.link.extend(claim, [worker.store(claim, 0, lines[:3])])
    assert events.watch(seen, wait=0.1, changes="status").json()["changed"] == []
    assert len(events.watch(seen, wait=0.1).json()["changed"]) == 1
    worker.link.commit(claim, [worker.store(claim, 1, lines[3:])])
    assert len(events.watch(seen, wait=60, changes="status").json()["changed"]) == 1


def test_a_watch_of_very_many_statuses_tells_the_same(
    service: RunningService, events: Events, their_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above some hundred the database compares them."""
    many: dict[str, str | None] = {f"batch_{number}": "validating.0" for number in range(600)}
    known, new, cancelled = (submit(service, "s.jsonl", f"{name}.jsonl") for name in "tuv")
    seen = {known.id: events.version(known), new.id: None, cancelled.id: events.version(cancelled)}
    service.client.cancel(cancelled.id)
    answer = events.watch(many | seen, wait=60, changes="status").json()
    assert {changed["batch"]["id"] for changed in answer["changed"]} == {new.id, cancelled.id}
    assert sorted(answer["gone"]) == sorted(many)
    assert len(events.watch(many | seen, token=their_token, changes="status").json()["gone"]) == 603
    monkeypatch.setattr(changes_module, "IDS_PER_QUERY", 0)
    thread, answers = later(lambda: events.watch({known.id: seen[known.id]}, wait=60, changes="status").json())
    eventually(lambda: events.changes.waiting == 1)
    service.client.cancel(known.id)
    thread.join(SOON)
    assert [changed["batch"]["status"] for changed in answers[0]["changed"]] == ["cancelled"]


@pytest.fixture
def their_token(service: RunningService) -> Iterator[str]:
    """The token of another team."""
    token = f"bl-{uuid.uuid4().hex}"
    service.state.tokens.add(token, name="theirs", team="them")
    yield token
    with service.state.database.writing() as connection:
        connection.execute(delete(tokens).where(tokens.c.team == "them"))


def test_another_teams_batch_is_not_there(service: RunningService, events: Events, their_token: str) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    for path in (batch.id, "batch_nowhere"):
        response = httpx.get(
            f"{events.url}/v1/batches/{path}/events", headers={"Authorization": f"Bearer {their_token}"}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (404, "batch_not_found")
    answer = events.watch({batch.id: None, "batch_nowhere": "x"}, token=their_token, wait=60).json()
    assert answer == {"changed": [], "gone": [batch.id, "batch_nowhere"], "has_more": False}


@pytest.mark.parametrize("path", ["watch", "x/events"])
def test_changes_are_told_nobody_without_a_token(events: Events, path: str) -> None:
    method = "POST" if path == "watch" else "GET"
    assert httpx.request(method, f"{events.url}/v1/batches/{path}").status_code == 401


def test_ten_thousand_batches_are_watched_in_one_request(service: RunningService, events: Events) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    seen: dict[str, str | None] = {f"batch_{number}": "validating.0" for number in range(9_999)} | {batch.id: None}
    answer = events.watch(seen, wait=60).json()
    assert [changed["batch"]["id"] for changed in answer["changed"]] == [batch.id]
    assert len(answer["gone"]) == 9_999
    assert events.watch(seen | {"batch_one_more": None}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"batches": {"batch x": None}},
        {"batches": {"batch_x": 1}},
        {"batches": {}, "wait": 61},
        {"batches": {}, "wait": -1},
        {"batches": {}, "changes": "some"},
        {"batches": {}, "until": 1},
    ],
)
def test_a_watch_that_cannot_be_meant_is_refused(events: Events, body: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {events.token}"}
    assert httpx.post(f"{events.url}/v1/batches/watch", headers=headers, json=body).status_code == 400


def test_one_answer_holds_so_many_batches_and_the_ended_ones_come_first(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_routes, "MOST_CHANGED", 2)
    seen: dict[str, str | None] = {submit(service, "s.jsonl", f"{number}.jsonl").id: None for number in range(5)}
    last = list(seen)[-1]
    service.client.cancel(last)
    told: list[list[str]] = []
    while seen:
        answer = events.watch(seen).json()
        told.append([changed["batch"]["id"] for changed in answer["changed"]])
        for batch_id in told[-1]:
            del seen[batch_id]
        assert answer["has_more"] == bool(seen)
    assert [len(batch_ids) for batch_ids in told] == [2, 2, 1]
    assert last in told[0]


def test_a_store_that_is_away_for_a_while_only_delays(
    service: RunningService, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.jsonl", "t.jsonl")
    failures = {"versions": 0, "records": 0}

    def away(name: str) -> None:
        real = getattr(BatchChanges, name)

        def broken(*arguments: Any) -> Any:
            if failures[name] < 3:
                failures[name] += 1
                raise StoreTroubleError("It is away.") if failures[name] != 2 or name == "records" else ValueError
            return real(*arguments)

        monkeypatch.setattr(BatchChanges, name, broken)

    with streaming(events, batch) as stream:
        eventually(lambda: events.changes.waiting == 1)
        away("versions")
        away("records")
        service.client.cancel(batch.id)
        eventually(lambda: stream.closed)
    assert stream.statuses == ["validating", "cancelled"]
    assert set(failures.values()) == {3}
    failures["records"] = 0
    with streaming(events, batch, last=stream.ids[-1]) as again:
        eventually(lambda: again.closed)
    assert failures["records"] == 3


def test_the_end_of_the_service_does_not_wait_for_those_that_wait(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_text('{"a": 1}\n')
    events = start(service)
    batch = submit(service, "s.jsonl", "t.jsonl")
    seen: dict[str, str | None] = {batch.id: events.version(batch)}
    with streaming(events, batch) as stream:
        thread, answers = later(lambda: events.watch(seen, wait=60).json())
        eventually(lambda: events.changes.waiting == 2)
        started = time.monotonic()
        events.end()
        assert time.monotonic() - started < SOON
        eventually(lambda: stream.closed)
    thread.join(SOON)
    assert answers[0]["changed"] == []


class Counting(BatchChanges):
    """Counts how often it looks, and at how many."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.looks: list[int] = []

    def versions(self, batch_ids: Collection[str]) -> dict[str, Seen]:
        self.looks.append(len(batch_ids))
        return super().versions(batch_ids)


async def test_a_thousand_waiters_cost_one_look_and_only_those_concerned_are_woken(store: Store) -> None:
    counting = Counting(store.database)
    waited = Changes(counting)
    ids = [store.submit() for _ in range(4)]
    version = {batch_id: seen.version for batch_id, seen in counting.versions(ids).items()}
    counting.looks.clear()
    waiters = [
        asyncio.create_task(waited.wait(Watch(TEAM, {ids[number % 4]: version[ids[number % 4]]})))
        for number in range(1_000)
    ]
    await asyncio.to_thread(eventually, lambda: len(counting.looks) >= 3)
    assert set(counting.looks) == {4}
    store.batches.cancel(TEAM, ids[0])
    await asyncio.gather(*waiters[::4])
    assert [waiter.done() for waiter in waiters] == [number % 4 == 0 for number in range(1_000)]
    waited.close()
    await asyncio.gather(*waiters)
    await asyncio.wait_for(waited.wait(Watch(TEAM, {})), SOON)
    looks = len(counting.looks)
    looking = waited._looking
    assert looking is not None
    await looking
    assert waited.waiting == 0
    assert len(counting.looks) <= looks + 1


@BOTH_STORES
def test_the_database_compares_statuses_by_itself(store: Store) -> None:
    looked = BatchChanges(store.database)
    ids = [store.submit() for _ in range(4)]
    seen = {batch_id: found.version for batch_id, found in looked.versions(ids).items()}
    with store.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == ids[0]).values(status="completed"))
        connection.execute(update(batches).where(batches.c.id == ids[1]).values(rows_done=9))
        connection.execute(update(batches).where(batches.c.id == ids[2]).values(team="another team"))
    statuses = statuses_seen(seen | {"nowhere": None, ids[3]: None})
    assert sorted(looked.differing(TEAM, statuses)) == sorted([ids[0], ids[2], ids[3], "nowhere"])
    assert len(looked.differing(TEAM, statuses, limit=1)) == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", "failed"),
        ("expiring", True),
        ("holder", "h"),
        ("priority", 3),
        ("expires_at", 1.5),
        ("trouble", "The target\nis full."),
        ("rows_total", 9),
        ("rows_done", 9),
        ("rows_failed", 9),
        ("chunks_done", 9),
        ("prompt_tokens", 9),
        ("completion_tokens", 9),
        ("gpu_seconds", 0.25),
    ],
)
def test_whatever_changes_of_a_batch_makes_a_new_version_of_one_line(store: Store, column: str, value: Any) -> None:
    looked = BatchChanges(store.database)
    changed, unchanged = store.submit(), store.submit()
    before = looked.versions([changed, unchanged])
    with store.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == changed).values({column: value}))
    after = looked.versions([changed, unchanged])
    assert before[changed].version != after[changed].version
    assert before[unchanged] == after[unchanged]
    assert len(after[changed].version.splitlines()) == 1
    assert [(version, record["id"]) for version, record in looked.records(TEAM, [changed])] == [
        (after[changed].version, changed)
    ]
    assert looked.records("another team", [changed]) == []
