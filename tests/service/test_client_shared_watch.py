"""Many batches waited for with one request at a time, of a real service."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from pool import free_port

from airflow_batch_llm.client import followers, shared_watch
from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.shared_watch import Connect, SharedWatch
from airflow_batch_llm.errors import NoAnswerError, NotFoundError, UnauthorizedError
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.wire import Batch, BatchChangeList
from tests.conftest import RunningService, eventually
from tests.service.answering import AnsweringWorker
from tests.service.test_service_bad_input import submit


@pytest.fixture(autouse=True)
def table(service: RunningService) -> None:
    pq.write_table(pa.table({"a": list(range(10))}), service.data_root / "s.parquet")


class Server(uvicorn.Server):
    """As the service runs it: who waits for changes is let go before connections are waited for."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.changes.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)

    def end(self) -> None:
        self.should_exit = True


class Calls:
    """The requests of a watch: how many there were, how many at once, and what is to go wrong with them."""

    def __init__(self) -> None:
        self.asked: list[tuple[frozenset[str], float, str]] = []
        self.at_once = self.most_at_once = 0
        self.trouble: Exception | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, watch = Calls(), AsyncBatchClient.watch

    async def counted(self: AsyncBatchClient, seen: Any, *, wait: float, changes: Any) -> BatchChangeList:
        calls.asked.append((frozenset(seen), wait, changes))
        calls.at_once += 1
        calls.most_at_once = max(calls.at_once, calls.most_at_once)
        try:
            if calls.trouble is not None:
                raise calls.trouble
            return await watch(self, seen, wait=wait, changes=changes)
        finally:
            calls.at_once -= 1

    monkeypatch.setattr(AsyncBatchClient, "watch", counted)
    monkeypatch.setattr(shared_watch, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(shared_watch, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(shared_watch, "QUIET_SECONDS", 0.0)
    return calls


def watch_of(service: RunningService, connect: Connect | None = None) -> SharedWatch:
    async def usual() -> AsyncBatchClient:
        return AsyncBatchClient(service.url, service.token)

    return SharedWatch.of(connect or service.url, connect or usual)


@asynccontextmanager
async def following(
    service: RunningService, *batch_ids: str, connect: Connect | None = None
) -> AsyncIterator[list[asyncio.Queue[Batch | Exception]]]:
    """What each of the batches' followers is told."""
    watch = watch_of(service, connect)

    async def follow(batch_id: str, told: asyncio.Queue[Batch | Exception]) -> None:
        try:
            async with aclosing(watch.snapshots(batch_id)) as snapshots:
                async for batch in snapshots:
                    told.put_nowait(batch)
        except Exception as error:  # noqa: BLE001 (the test looks at it)
            told.put_nowait(error)

    queues: list[asyncio.Queue[Batch | Exception]] = [asyncio.Queue() for _ in batch_ids]
    tasks = [asyncio.create_task(follow(*pair)) for pair in zip(batch_ids, queues, strict=True)]
    try:
        yield queues
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def soon(done: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 (what is looked at tells nobody)
            await asyncio.sleep(0.01)


async def told(queue: asyncio.Queue[Batch | Exception]) -> Any:
    async with asyncio.timeout(20):
        return await queue.get()


async def ended(service: RunningService, *batches: Batch) -> None:
    def work() -> None:
        while service.plan():
            pass
        AnsweringWorker(service).work()
        while service.assemble():
            pass

    await asyncio.to_thread(work)
    for batch in batches:
        assert (await asyncio.to_thread(service.client.get, batch.id)).status.ended


async def until_ended(queue: asyncio.Queue[Batch | Exception]) -> list[str]:
    statuses = []
    while True:
        batch = await told(queue)
        statuses.append(str(batch.status))
        if batch.status.ended:
            return statuses


async def test_one_request_waits_for_all_batches_and_each_follower_hears_of_its_own(
    service: RunningService, calls: Calls
) -> None:
    batches = [submit(service, "s.parquet", f"t{number}.parquet") for number in range(5)]
    async with following(service, *(batch.id for batch in batches)) as queues:
        firsts = [await told(queue) for queue in queues]
        assert [first.id for first in firsts] == [batch.id for batch in batches]
        await ended(service, batches[0])
        assert (await until_ended(queues[0]))[-1] == "completed"
    assert calls.most_at_once == 1
    assert max(calls.asked, key=lambda asked: len(asked[0]))[0] == {batch.id for batch in batches}


async def test_nobody_is_asked_for_once_nobody_waits(service: RunningService, calls: Calls) -> None:
    batch = submit(service, "s.parquet")
    async with following(service, batch.id) as (queue,):
        await told(queue)
        (group,) = watch_of(service)._groups
        await soon(lambda: calls.at_once)
    await soon(lambda: group._asking is not None and group._asking.done())
    assert calls.at_once == 0
    assert {asked[0] for asked in calls.asked} == {frozenset({batch.id})}
    assert watch_of(service)._groups == []


async def test_who_comes_while_a_request_waits_is_told_at_once(service: RunningService, calls: Calls) -> None:
    first, second = (submit(service, "s.parquet", f"{name}.parquet") for name in "ab")
    async with following(service, first.id) as (queue,):
        await told(queue)
        await soon(lambda: calls.asked[-1][2] == "status")
        async with following(service, second.id, first.id) as queues:
            assert [(await told(other)).id for other in queues] == [second.id, first.id]
    assert calls.most_at_once == 1


async def test_a_change_between_two_requests_is_not_missed(
    service: RunningService, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "ROUND_SECONDS", 0.5)
    batch = submit(service, "s.parquet")
    async with following(service, batch.id) as (queue,):
        await told(queue)
        assert calls.at_once == 0
        await ended(service, batch)
        assert (await until_ended(queue))[-1] == "completed"


async def test_progress_is_told_without_a_new_status(
    service: RunningService, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "PROGRESS_SECONDS", 0.2)
    batch = submit(service, "s.parquet")
    assert await asyncio.to_thread(service.plan)
    async with following(service, batch.id) as (queue,):
        first = await told(queue)
        worker = await asyncio.to_thread(AnsweringWorker, service)
        claim, lines = await asyncio.to_thread(worker.claim)
        await asyncio.to_thread(worker.link.extend, claim, [await asyncio.to_thread(worker.store, claim, 0, lines[:4])])
        later = await told(queue)
        assert (first.status, later.status) == ("in_progress", "in_progress")
        assert (first.progress.rows_done, later.progress.rows_done) == (0, 4)


async def test_a_service_that_is_away_fails_nobody_and_is_told_once_in_each_followers_log(
    service: RunningService, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    batch = submit(service, "s.parquet")
    with caplog.at_level(logging.INFO, logger=followers.__name__):
        async with following(service, batch.id, batch.id) as queues:
            for queue in queues:
                await told(queue)
            calls.trouble = NoAnswerError("The batch service does not answer.")
            await soon(lambda: calls.asked[-1][2] == "status")
            await ended(service, batch)
            await soon(lambda: len(caplog.records) >= 2)
            count = len(calls.asked)
            await soon(lambda: len(calls.asked) >= count + 3)
            assert all(queue.empty() for queue in queues)
            calls.trouble = None
            assert [(await until_ended(queue))[-1] for queue in queues] == ["completed"] * 2
    assert [record.getMessage() for record in caplog.records if record.name == followers.__name__] == [
        *["The batch service does not answer. It is tried again, for as long as it takes."] * 2,
        *["The batch service answers again."] * 2,
    ]


def start_again(service: RunningService) -> Server:
    """The service on its own port of before."""
    config = uvicorn.Config(create_app(service.state), host="127.0.0.1", port=service.settings.port, log_level="error")
    server = Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    eventually(lambda: server.started, what="the service listens")
    return server


async def test_a_service_that_was_stopped_and_started_again_loses_no_change(
    service: RunningService, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches end while nobody can be asked, and one that is waited for only then is told of as well."""
    port = free_port()
    away = replace(service, settings=replace(service.settings, port=port))
    batches = [submit(service, "s.parquet", f"{name}.parquet") for name in "abc"]
    url = f"http://127.0.0.1:{port}"

    async def connect() -> AsyncBatchClient:
        return AsyncBatchClient(url, service.token)

    server = await asyncio.to_thread(start_again, away)
    async with following(service, batches[0].id, batches[1].id, connect=connect) as queues:
        for queue in queues:
            await told(queue)
        await asyncio.to_thread(server.end)
        await ended(service, *batches)
        await soon(lambda: any("cannot be reached" in record.getMessage() for record in caplog.records))
        async with following(service, batches[2].id, connect=connect) as late:
            count = len(calls.asked)
            await soon(lambda: len(calls.asked) > count + 1)
            server = await asyncio.to_thread(start_again, away)
            assert [(await until_ended(queue))[-1] for queue in [*queues, *late]] == ["completed"] * 3
    await asyncio.to_thread(server.end)


async def test_a_follower_that_breaks_off_in_the_middle_harms_no_other(service: RunningService, calls: Calls) -> None:
    batch = submit(service, "s.parquet")
    async with following(service, batch.id) as (queue,):
        with pytest.raises(ZeroDivisionError):
            async with aclosing(watch_of(service).snapshots(batch.id)) as snapshots:
                async for _ in snapshots:
                    raise ZeroDivisionError
        await ended(service, batch)
        assert (await until_ended(queue))[-1] == "completed"


@pytest.mark.parametrize("batch_id", ["batch_nowhere", "no id at all"])
async def test_a_batch_that_is_not_there_is_an_error_for_its_follower_alone(
    service: RunningService, calls: Calls, batch_id: str
) -> None:
    batch = submit(service, "s.parquet")
    async with following(service, batch.id, batch_id) as (queue, lost):
        assert isinstance(await told(lost), NotFoundError)
        assert (await told(queue)).id == batch.id
        await ended(service, batch)
        assert (await until_ended(queue))[-1] == "completed"


async def test_a_token_that_is_not_taken_for_long_is_an_error_for_all_and_a_later_follower_asks_anew(
    service: RunningService, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "PATIENCE_SECONDS", 0.0)
    batch = submit(service, "s.parquet")
    calls.trouble = UnauthorizedError("The token is not one of this service.")
    async with following(service, batch.id, batch.id) as queues:
        assert [type(await told(queue)) for queue in queues] == [UnauthorizedError] * 2
        calls.trouble = None
        async with following(service, batch.id) as (queue,):
            assert (await told(queue)).id == batch.id


async def test_a_token_that_was_changed_is_picked_up_and_a_connection_that_cannot_be_read_is_read_again(
    service: RunningService, calls: Calls
) -> None:
    tokens: list[str | None] = [None, "revoked", None, service.token]
    batch = submit(service, "s.parquet")

    async def connect() -> AsyncBatchClient:
        token = tokens.pop(0)
        if token is None:
            raise RuntimeError("Airflow's database is busy")
        return AsyncBatchClient(service.url, token)

    async with aclosing(SharedWatch.of("rotated", connect).snapshots(batch.id)) as snapshots:
        assert (await anext(snapshots)).id == batch.id
    assert tokens == []


async def test_an_answer_that_nobody_foresaw_is_waited_out(service: RunningService, calls: Calls) -> None:
    batch = submit(service, "s.parquet")
    calls.trouble = RuntimeError("what is this?")
    async with following(service, batch.id) as (queue,):
        await soon(lambda: len(calls.asked) >= 3)
        calls.trouble = None
        assert (await told(queue)).id == batch.id


async def test_more_than_one_request_can_name_are_shared_out(
    service: RunningService, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "MOST_WATCHED", 3)
    batches = [submit(service, "s.parquet", f"t{number}.parquet") for number in range(7)]
    async with following(service, *(batch.id for batch in batches)) as queues:
        assert [(await told(queue)).id for queue in queues] == [batch.id for batch in batches]
        await soon(lambda: calls.at_once == 3)
    assert max(len(asked[0]) for asked in calls.asked) == 3


async def test_the_task_that_asks_runs_in_nobodys_context(service: RunningService, calls: Calls) -> None:
    """Airflow tells by the context whose log is written."""
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    found: list[str] = []
    watch: Callable[..., Awaitable[BatchChangeList]] = AsyncBatchClient.watch

    async def looking(*arguments: Any, **named: Any) -> BatchChangeList:
        found.append(whose.get())
        return await watch(*arguments, **named)

    batch = submit(service, "s.parquet")
    whose.set("the first follower's")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncBatchClient, "watch", looking)
        async with following(service, batch.id) as (queue,):
            await told(queue)
    assert set(found) == {"nobody's"}


async def test_many_followers_are_told_in_turns_with_which_the_event_loop_goes_on() -> None:
    """Airflow's triggerer can stand still for good where thousands of lines are logged in one moment."""
    group = shared_watch._Group(asyncio.Event().wait)  # type: ignore[arg-type]
    names = [f"batch_{number}" for number in range(3 * shared_watch.TOLD_AT_ONCE)]
    joined = [group.join(name) for name in names]
    course: list[str] = []

    async def others() -> None:
        while True:
            course.append(" ")
            await asyncio.sleep(0)

    going_on = asyncio.create_task(others())
    async for follower in group._in_turn(*names):
        course.append("x")
        assert follower in joined
    going_on.cancel()
    group._asking.cancel()  # type: ignore[union-attr]
    assert "".join(course).count("x") == len(names)
    assert max(len(turn) for turn in "".join(course).split()) == shared_watch.TOLD_AT_ONCE
