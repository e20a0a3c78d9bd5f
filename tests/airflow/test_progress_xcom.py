"""The XCom ``progress``: how often it is written, what it says, and that nothing rests on it."""

from __future__ import annotations

import asyncio
import logging
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.execution_time.xcom import XCom
from conftest import task_instance

from airflow_batch_llm.hooks import progress_xcom
from airflow_batch_llm.hooks.progress_xcom import Paced, SharedWriter, progress_value, pushed, sent_by_trigger
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch, Progress

pytestmark = pytest.mark.airflow

log = logging.getLogger("test")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def batch(done: int = 1, status: BatchStatus = BatchStatus.IN_PROGRESS, name: str = "batch_1") -> Batch:
    progress = Progress(rows_total=10, rows_done=done, rows_failed=1, rows_reused=2, tokens_per_second=7.5)
    return Batch(id=name, endpoint="/v1/chat/completions", created_at=1, status=status, progress=progress)


class Written:
    """Takes the place of Airflow's table of XComs; ``gate`` holds its writers up."""

    def __init__(self) -> None:
        self.values: list[tuple[str, int, Any]] = []
        self.changed = asyncio.Event()
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.loop = asyncio.get_running_loop()

    def set(self, key: str, value: Any, *, dag_id: str, task_id: str, run_id: str, map_index: int) -> None:
        self.loop.call_soon_threadsafe(self.begun.set)
        asyncio.run_coroutine_threadsafe(self.gate.wait(), self.loop).result()
        self.values.append((key, map_index, value["rows_done"]))
        self.loop.call_soon_threadsafe(self.changed.set)

    async def until(self, count: int) -> None:
        while len(self.values) < count:
            await self.changed.wait()
            self.changed.clear()


@pytest.fixture
async def written(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Written]:
    monkeypatch.setattr(progress_xcom, "PAUSE", 0.0)
    table = Written()
    monkeypatch.setattr(XCom, "set", table.set)
    yield table
    if writing := SharedWriter.of_running_loop()._writing:
        writing.cancel()


def test_progress_says_how_far_the_batch_is_in_json_types() -> None:
    assert progress_value(batch(), now=NOW) == {
        "batch_id": "batch_1",
        "status": "in_progress",
        "rows_total": 10,
        "rows_done": 1,
        "rows_failed": 1,
        "rows_reused": 2,
        "tokens_per_second": 7.5,
        "eta_seconds": None,
        "at": "2026-01-31T12:00:00+00:00",
    }


def test_a_value_is_written_at_first_and_then_when_it_moved_every_30_s_at_most() -> None:
    said: list[int] = []
    paced = Paced(lambda value: said.append(value["rows_done"]))
    for second, done in [(0, 1), (5, 2), (31, 3), (70, 3), (75, 4), (104, 5), (105, 6)]:
        paced.saw(batch(done), now=NOW + timedelta(seconds=second))
    assert said == [1, 3, 4, 6]


async def test_of_values_that_wait_to_be_written_the_newest_is(written: Written) -> None:
    writer = SharedWriter.of_running_loop()
    places = [progress_xcom.Place("d", "t", "r", index) for index in range(2)]
    for done in (1, 2, 3):
        for place in places:
            writer.put(place, progress_value(batch(done), now=NOW), log)
    await written.until(2)
    assert written.values == [("progress", 0, 3), ("progress", 1, 3)]


async def test_between_two_writes_of_a_process_there_is_a_pause(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    paused = asyncio.Event()

    async def forever(seconds: float) -> None:
        pauses.append(seconds)
        paused.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(progress_xcom, "PAUSE", 0.2)
    monkeypatch.setattr(progress_xcom.asyncio, "sleep", forever)
    for index in range(3):
        place = progress_xcom.Place("d", "t", "r", index)
        SharedWriter.of_running_loop().put(place, progress_value(batch(), now=NOW), log)
    await asyncio.wait(
        {asyncio.create_task(paused.wait()), asyncio.create_task(written.until(2))}, return_when=FIRST_COMPLETED
    )
    assert ([index for _, index, _ in written.values], pauses) == ([0], [0.2])


async def test_what_was_not_written_when_a_trigger_ends_is_never_written(written: Written) -> None:
    written.gate.clear()
    with sent_by_trigger(task_instance(map_index=0), log) as first:
        first(batch())
        await written.begun.wait()
        with sent_by_trigger(task_instance(map_index=1), log) as second:
            second(batch())
    written.gate.set()
    with sent_by_trigger(task_instance(map_index=2), log) as third:
        third(batch())
        await written.until(2)
    assert [index for _, index, _ in written.values] == [0, 2]


async def test_a_write_goes_on_when_its_trigger_is_cancelled(written: Written) -> None:
    written.gate.clear()

    async def trigger() -> None:
        with sent_by_trigger(task_instance(map_index=0), log) as tell:
            tell(batch())
            await asyncio.Event().wait()

    waiting = asyncio.create_task(trigger())
    await written.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    written.gate.set()
    await written.until(1)
    assert written.values == [("progress", 0, 1)]


async def test_what_cannot_be_written_is_a_line_for_debugging_and_no_error(
    written: Written, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    refused = asyncio.Event()

    def refuse(*_: Any, **__: Any) -> None:
        written.loop.call_soon_threadsafe(refused.set)
        raise RuntimeError("no place for it")

    monkeypatch.setattr(XCom, "set", refuse)
    with sent_by_trigger(task_instance(map_index=0), log) as tell:
        tell(batch())
        await refused.wait()
    monkeypatch.setattr(XCom, "set", written.set)
    with sent_by_trigger(task_instance(map_index=1), log) as tell:
        tell(batch())
        await written.until(1)
    assert [record.levelname for record in caplog.records if record.name == "test"] == ["DEBUG"]


async def test_a_trigger_outside_airflow_writes_nothing(written: Written) -> None:
    with sent_by_trigger(None, log) as tell:
        tell(batch())
    assert SharedWriter.of_running_loop()._writing is None


def test_a_worker_that_cannot_write_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pushed(task_instance(), log)(batch())  # this one has no xcom_push
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
