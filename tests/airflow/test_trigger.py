"""The trigger against a real service: one event, ids only, and a cancel that is fenced twice."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.sdk.module_loading import import_string
from airflow.sdk.serde import deserialize, serialize
from conftest import task_instance

from airflow_batch_llm.client import shared_watch
from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.shared_watch import SharedWatch
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.triggers.batch_llm import ENDINGS, BatchLLMTrigger, check_serialises
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message

pytestmark = pytest.mark.airflow

CONN_ID = "batch_llm_default"
GONE = ("cancelling", "cancelled")


@pytest.fixture
def batch_id(connected: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.SETTLE", timedelta(0))
    dataset = DatasetSpec(
        source="reviews.parquet", target="labels.parquet", messages=[Message(role="user", content="{text}")]
    )
    return str(connected.client.submit(BatchCreate(dataset=dataset, model="tiny", holder="try-1")).id)


def unreadable(**_: Any) -> None:
    raise RuntimeError("no answer")


def trigger(batch_id: str, *, map_index: int = -1, **changes: Any) -> BatchLLMTrigger:
    made = BatchLLMTrigger(CONN_ID, batch_id, **{"holder": "try-1", "cancel_on_kill": True, **changes})
    made.task_instance = task_instance(map_index=map_index)
    return made


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Airflow says of the tasks of the run."""
    known: dict[str, Any] = {}
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **_: {"manual__1": known})
    return known


def test_a_trigger_survives_airflows_storing_of_it() -> None:
    path, arguments = trigger("batch_1").serialize()
    again = import_string(path)(**deserialize(serialize(arguments)))
    assert again.serialize() == (path, arguments)


def test_a_trigger_holds_ids_and_numbers_only() -> None:
    _, arguments = trigger("batch_1").serialize()
    known = ["batch_id", "cancel_on_kill", "conn_id", "gated", "holder", "poll_interval", "progress_xcom", "shared"]
    assert sorted(arguments) == known


def test_what_airflow_could_not_store_is_refused() -> None:
    with pytest.raises(TypeError, match="could not defer"):
        check_serialises(trigger("batch_1", poll_interval=timedelta(seconds=5)))


async def test_a_trigger_gives_one_event_and_ends(connected: Any, batch_id: str) -> None:
    connected.client.cancel(batch_id)
    while not connected.client.get(batch_id).status.ended:
        assert connected.plan() or connected.assemble()
    events = [event.payload async for event in trigger(batch_id, poll_interval=0.1).run()]
    assert events == [{"batch_id": batch_id, "status": "cancelled"}]


def test_a_trigger_runs_on_one_event_loop_after_another(connected: Any, batch_id: str) -> None:
    """`dag.test()` runs each trigger on a loop of its own, and takes no more than the first event."""
    connected.client.cancel(batch_id)

    async def first() -> Any:
        return await anext(trigger(batch_id).run(), None)

    assert [asyncio.run(first()).payload["status"] for _ in range(2)] == ["cancelled"] * 2


async def test_a_batch_that_is_gone_is_an_event_too(connected: Any, batch_id: str) -> None:
    events = [event.payload async for event in trigger("batch_nowhere").run()]
    assert [event["batch_id"] for event in events] == ["batch_nowhere"]
    assert "batch_nowhere" in events[0]["error"]


@pytest.mark.parametrize("shared", [True, False])
async def test_a_connection_that_cannot_be_read_for_a_moment_fails_nobody(
    shared: bool, connected: Any, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.LOOKUP_PAUSES", (0.01, 0.01))
    failures, read = [RuntimeError("Airflow's API is away")] * 2, BatchLLMHook.aget_address

    async def sometimes(self: BatchLLMHook) -> Any:
        if failures:
            raise failures.pop()
        return await read(self)

    monkeypatch.setattr(BatchLLMHook, "aget_address", sometimes)
    connected.client.cancel(batch_id)
    events = [event.payload async for event in trigger(batch_id, shared=shared).run()]
    assert events == [{"batch_id": batch_id, "status": "cancelled"}]


async def test_a_cancelled_trigger_leaves_nothing_behind(connected: Any, batch_id: str) -> None:
    watching = asyncio.create_task(anext(trigger(batch_id).run()))
    watch = SharedWatch.of(CONN_ID, BatchLLMHook(CONN_ID).aget_conn)
    while not watch._groups:  # noqa: ASYNC110 (who joins tells nobody)
        await asyncio.sleep(0)
    (group,) = watch._groups
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert watch._groups == []
    await group._asking
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("ended_as", ["failed", "success", "skipped", None])
async def test_a_task_ended_by_a_user_cancels_its_batch(
    ended_as: str | None, connected: Any, batch_id: str, states: dict[str, Any]
) -> None:
    states["classify"] = ended_as
    await trigger(batch_id).on_kill()
    assert connected.client.get(batch_id).status in GONE


@pytest.mark.parametrize(("map_index", "name"), [(-1, "classify"), (3, "classify_3")])
async def test_a_trigger_that_moves_to_another_triggerer_cancels_nothing(
    map_index: int, name: str, connected: Any, batch_id: str, states: dict[str, Any]
) -> None:
    states[name] = "deferred"
    await trigger(batch_id, map_index=map_index).on_kill()
    assert connected.client.get(batch_id).status not in GONE


async def test_a_state_that_cannot_be_read_cancels_nothing(
    connected: Any, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", unreadable)
    await trigger(batch_id).on_kill()
    assert connected.client.get(batch_id).status not in GONE


async def test_a_holder_that_was_replaced_cancels_nothing(
    connected: Any, batch_id: str, states: dict[str, Any]
) -> None:
    states["classify"] = "running"
    await trigger(batch_id, holder="try-0").on_kill()
    assert connected.client.get(batch_id).status not in GONE


async def test_a_trigger_told_not_to_cancels_nothing(connected: Any, batch_id: str, states: dict[str, Any]) -> None:
    states["classify"] = "failed"
    await trigger(batch_id, cancel_on_kill=False).on_kill()
    assert connected.client.get(batch_id).status not in GONE


async def test_a_cancel_that_airflow_interrupts_is_carried_through(
    connected: Any, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(**_: Any) -> dict[str, Any]:
        asked.set()
        answer.wait()
        return {"manual__1": {"classify": "failed"}}

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", slow)
    killing = asyncio.create_task(trigger(batch_id).on_kill())
    await asyncio.to_thread(asked.wait)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    answer.set()
    await asyncio.gather(*ENDINGS)
    assert connected.client.get(batch_id).status in GONE


@pytest.mark.parametrize(("holder", "cancelled"), [("try-1", True), (None, False)])
async def test_a_cancel_that_the_service_does_not_answer_is_tried_again_unless_it_could_hit_a_later_try(
    holder: str | None,
    cancelled: bool,
    connected: Any,
    batch_id: str,
    states: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.LOOKUP_PAUSES", (0.01, 0.01))
    failures, cancel = [NoAnswerError("away")] * 2, AsyncBatchClient.cancel

    async def sometimes(self: AsyncBatchClient, *arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return await cancel(self, *arguments, **named)

    monkeypatch.setattr(AsyncBatchClient, "cancel", sometimes)
    states["classify"] = "failed"
    await trigger(batch_id, holder=holder).on_kill()
    assert (connected.client.get(batch_id).status in GONE) is cancelled


async def test_cleanup_cancels_nothing_where_airflow_tells_of_kills(
    connected: Any, batch_id: str, states: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.TELLS_OF_KILLS", True)
    states["classify"] = "failed"
    await trigger(batch_id).cleanup()
    assert connected.client.get(batch_id).status not in GONE


@pytest.fixture
def tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an Airflow before 3.3, whose triggers have no ``on_kill``."""
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.TELLS_OF_KILLS", False)


@pytest.mark.usefixtures("tells_nothing")
@pytest.mark.parametrize("ended_as", ["failed", "success", "skipped", None])
async def test_cleanup_cancels_the_batch_of_a_task_that_was_ended_where_airflow_does_not_tell(
    ended_as: str | None, connected: Any, batch_id: str, states: dict[str, Any]
) -> None:
    states["classify"] = ended_as
    await trigger(batch_id).cleanup()
    assert connected.client.get(batch_id).status in GONE


@pytest.mark.usefixtures("tells_nothing")
@pytest.mark.parametrize("goes_on_as", ["deferred", "scheduled", "queued", "running"])
async def test_cleanup_cancels_nothing_while_the_task_goes_on(
    goes_on_as: str, connected: Any, batch_id: str, states: dict[str, Any]
) -> None:
    states["classify"] = goes_on_as
    await trigger(batch_id).cleanup()
    assert connected.client.get(batch_id).status not in GONE


@pytest.mark.usefixtures("tells_nothing")
async def test_cleanup_cancels_nothing_that_it_cannot_read_or_was_told_to_keep(
    connected: Any, batch_id: str, states: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    states["classify"] = "failed"
    await trigger(batch_id, cancel_on_kill=False).cleanup()
    await trigger(batch_id, holder="try-0").cleanup()
    nobodys = trigger(batch_id)
    nobodys.task_instance = None
    await nobodys.cleanup()
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", unreadable)
    await trigger(batch_id).cleanup()
    assert connected.client.get(batch_id).status not in GONE


@pytest.mark.usefixtures("tells_nothing")
async def test_cleanup_after_the_event_asks_nobody(
    connected: Any, batch_id: str, states: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected.client.cancel(batch_id)
    while not connected.client.get(batch_id).status.ended:
        assert connected.plan() or connected.assemble()
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **what: asked.append(what))
    ended = trigger(batch_id, poll_interval=0.1)
    assert [event async for event in ended.run()]
    await ended.cleanup()
    assert asked == []
