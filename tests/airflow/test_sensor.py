"""The sensor against a real service: on a batch, on a key, and on all batches of a Dag run."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk.module_loading import import_string
from airflow.sdk.serde import deserialize, serialize
from conftest import task_instance
from sqlalchemy import update

from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.names import run_group
from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.store.tokens import TokenRecord, new_token
from airflow_batch_llm.store.watching import Watching
from airflow_batch_llm.triggers.search import BatchLLMSearchTrigger
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import eventually
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow

CONN_ID = "batch_llm_default"
DONE = {"batch_id": "b", "on_empty": "done"}
CONTEXT = {"ti": task_instance(task_id="wait")}
Submit = Callable[..., Batch]


@pytest.fixture
def submit(connected: Any, monkeypatch: pytest.MonkeyPatch) -> Submit:
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.SETTLE", timedelta(0))

    def submitted(name: str = "labels", **changes: Any) -> Batch:
        asked = [Message(role="user", content=f"{name} {{text}}")]
        dataset = DatasetSpec(source="reviews.parquet", target=f"{name}.parquet", messages=asked)
        batch: Batch = connected.client.submit(BatchCreate(dataset=dataset, model="m", **changes))
        return batch

    return submitted


@pytest.fixture
def own_run(connected: Any) -> str:
    return run_group(_deployment(), "reviews", "manual__1")


def _deployment() -> str:
    return BatchLLMSensor(task_id="wait").hook.deployment


def complete(connected: Any) -> None:
    while connected.plan():
        pass
    AnsweringWorker(connected).work()
    while connected.assemble():
        pass


def cancel(connected: Any, batch: Batch) -> None:
    connected.client.cancel(batch.id)
    while not connected.client.get(batch.id).status.ended:
        assert connected.plan() or connected.assemble()


def sensor(**arguments: Any) -> BatchLLMSensor:
    return BatchLLMSensor(**{"task_id": "wait", "timeout": 60, **arguments})


def deferred(waiting: BatchLLMSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferral:
        waiting.execute(CONTEXT)
    return deferral.value


async def event_of(trigger: Any) -> Any:
    [event] = [event.payload async for event in trigger.run()]
    return event


async def still(waiting: asyncio.Task[Any]) -> bool:
    """Whether it goes on for a while longer than it takes between two looks."""
    _, pending = await asyncio.wait({waiting}, timeout=0.3)
    return bool(pending)


def test_a_sensor_defers_and_its_trigger_never_cancels(submit: Submit) -> None:
    batch = submit()
    waiting = sensor(batch_id=batch.id)
    deferral = deferred(waiting)
    assert deferral.trigger.batch_id == batch.id
    assert deferral.trigger.cancel_on_kill is False
    assert timedelta(seconds=50) < deferral.timeout <= timedelta(seconds=60)
    assert type(deferral.timeout) is timedelta  # Airflow sends no subclass of it to its supervisor
    assert waiting.linked_batch is not None


def test_a_sensor_that_does_not_defer_looks_again(submit: Submit) -> None:
    assert not sensor(batch_id=submit().id, deferrable=False).poke(CONTEXT).is_done


def test_the_asset_event_of_a_sensor_tells_of_the_batch(connected: Any, submit: Submit) -> None:
    batch, labels, events = submit(), Asset("labels"), defaultdict[Asset, Any](SimpleNamespace)
    complete(connected)
    sensor(batch_id=batch.id, outlets=[labels]).execute({**CONTEXT, "outlet_events": events})
    assert events[labels].extra["batch_id"] == batch.id
    assert events[labels].extra["rows"] == 2


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_batch_that_ended_early_fails_its_sensor_without_retries(
    deferrable: bool, connected: Any, submit: Submit
) -> None:
    batch = submit()
    cancel(connected, batch)
    with pytest.raises(AirflowFailException, match=batch.id):
        sensor(batch_id=batch.id, deferrable=deferrable).execute(CONTEXT)


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
def test_a_soft_sensor_is_skipped_instead(soft: str, deferrable: bool, connected: Any, submit: Submit) -> None:
    batch = submit()
    cancel(connected, batch)
    with pytest.raises(AirflowSkipException):
        sensor(batch_id=batch.id, deferrable=deferrable, **{soft: True}).execute(CONTEXT)


@pytest.mark.parametrize(("soft_fail", "outcome"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_a_sensor_that_waited_too_long_ends_as_every_sensor_does_and_cancels_nothing(
    soft_fail: bool, outcome: type[Exception], connected: Any, submit: Submit
) -> None:
    batch = submit()
    with pytest.raises(outcome):
        sensor(batch_id=batch.id, timeout=0, deferrable=False, soft_fail=soft_fail).execute(CONTEXT)
    with pytest.raises(outcome):
        sensor(batch_id=batch.id, soft_fail=soft_fail).resume_execution(
            "__fail__", {"error": "Trigger timeout"}, CONTEXT
        )
    assert connected.client.get(batch.id).status == "validating"


def test_a_sensor_that_is_resumed_keeps_what_is_left_of_its_timeout(connected: Any, submit: Submit) -> None:
    submit(key="k")
    kwargs = deferred(sensor(key="k")).kwargs
    with pytest.raises(TaskDeferred) as again:
        sensor(key="k", timeout=999_999).execute_complete(CONTEXT, event={}, **kwargs)
    assert again.value.timeout <= timedelta(seconds=60)
    assert type(again.value.timeout) is timedelta


def test_a_resumed_sensor_links_to_its_batch_also_if_it_can_not_be_followed(connected: Any) -> None:
    waiting = sensor(batch_id="batch_1")
    with pytest.raises(AirflowException, match="cannot be followed"):
        waiting.execute_complete(CONTEXT, event={"batch_id": "batch_1", "error": "gone"}, until="2026-01-01T00:00:00Z")
    assert waiting.linked_batch == "batch_1"


def test_an_operator_that_does_not_wait_hands_its_batch_over(connected: Any) -> None:
    task = BatchLLMOperator(
        task_id="classify",
        source="reviews.parquet",
        target="labels.parquet",
        model="m",
        prompt="{text}?",
        wait_for_completion=False,
    )
    batch_id = task.execute({"ti": task_instance()})
    waiting = [sensor(batch_id=batch_id), sensor()]
    for each in waiting:
        deferred(each)
    complete(connected)
    manifest, of_run = (each.execute(CONTEXT) for each in waiting)
    assert (manifest["batch_id"], manifest["counts"]) == (batch_id, {"success": 2})
    assert of_run == [
        {"batch_id": batch_id, "manifest": f"{manifest['files'][0]['uri']}.manifest.json", "rows": 2, "rows_failed": 0}
    ]
    assert "batch_id" in BatchLLMSensor.template_fields


@pytest.mark.parametrize("rendered", [None, "", " ", "None"])
def test_a_batch_id_that_names_nothing_is_not_taken_for_the_own_run(rendered: str | None, connected: Any) -> None:
    with pytest.raises(AirflowFailException, match="names no batch"):
        sensor(batch_id=rendered).execute(CONTEXT)


@pytest.mark.parametrize(
    "arguments",
    [{"batch_id": "b", "key": "k"}, {"key": "k", "external_run_id": "r"}, {"on_empty": "skip"}, DONE],
)
def test_a_sensor_waits_for_one_thing(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"names|on_empty"):
        sensor(**arguments)


async def test_a_key_that_nobody_has_used_is_waited_for_until_its_batch_has_ended(
    connected: Any, submit: Submit
) -> None:
    trigger = (await asyncio.to_thread(deferred, sensor(key="k"))).trigger
    trigger.poll_interval = 0.05
    waiting = asyncio.create_task(event_of(trigger))
    assert await still(waiting)
    await asyncio.to_thread(submit, key="k")
    assert await still(waiting)
    await asyncio.to_thread(complete, connected)
    assert await waiting == {}
    manifest = await asyncio.to_thread(sensor(key="k").execute, CONTEXT)
    assert manifest["counts"] == {"success": 2}


def test_of_a_key_the_newest_generation_counts(connected: Any, submit: Submit) -> None:
    cancel(connected, submit(key="k"))
    with pytest.raises(AirflowException, match="newer generation") as ended:
        sensor(key="k").execute(CONTEXT)
    assert not isinstance(ended.value, AirflowFailException)
    again = submit(key="k")
    complete(connected)
    assert sensor(key="k").execute(CONTEXT)["batch_id"] == again.id


async def test_all_batches_of_a_run_are_waited_for_those_too_that_come_meanwhile(
    connected: Any, submit: Submit, own_run: str
) -> None:
    first = await asyncio.to_thread(submit, "first", series="s1", group=own_run)
    trigger = BatchLLMSearchTrigger(CONN_ID, group=own_run, poll_interval=0.05)
    waiting = asyncio.create_task(event_of(trigger))
    second = await asyncio.to_thread(submit, "second", series="s2", group=own_run)
    await asyncio.to_thread(cancel, connected, first)
    assert await still(waiting)
    await asyncio.to_thread(complete, connected)
    assert await waiting == {}
    assert connected.client.get(second.id).status == "completed"


def test_of_a_task_that_was_cleared_the_last_batch_counts(connected: Any, submit: Submit, own_run: str) -> None:
    submit(series="s", key="s/0", group=own_run)
    newest = submit(series="s", key="s/1", group=own_run)  # which cancels the one before
    other = submit("other", series="s2", key="s2/0", group=own_run)
    submit("of another run", series="s3", group=f"{own_run}1")
    complete(connected)
    assert [found["batch_id"] for found in sensor().execute(CONTEXT)] == [newest.id, other.id]


def test_a_run_with_a_batch_that_did_not_complete_fails_its_sensor_which_may_be_retried(
    connected: Any, submit: Submit, own_run: str
) -> None:
    good, bad = (submit(name, series=name, group=own_run) for name in ("good", "bad"))
    cancel(connected, bad)
    complete(connected)
    with pytest.raises(AirflowException, match=f"1 of .* did not complete. Batch {bad.id} ended as cancelled") as ended:
        sensor().execute(CONTEXT)
    assert not isinstance(ended.value, AirflowFailException)
    assert good.id not in str(ended.value)


def test_the_run_may_be_another_dags(connected: Any, submit: Submit) -> None:
    batch = submit(group=run_group(_deployment(), "other", "scheduled__1"))
    complete(connected)
    waiting = sensor(external_dag_id="other", external_run_id="scheduled__1")
    assert [found["batch_id"] for found in waiting.execute(CONTEXT)] == [batch.id]


def test_a_run_without_a_batch_is_waited_for(connected: Any, own_run: str) -> None:
    assert deferred(sensor()).trigger.group == own_run
    assert not sensor(deferrable=False).poke(CONTEXT).is_done


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_run_without_a_batch_is_done_where_the_sensor_is_told_so(deferrable: bool, connected: Any) -> None:
    assert sensor(on_empty="done", deferrable=deferrable).execute(CONTEXT) == []


def test_a_service_that_does_not_answer_is_looked_at_again(
    connected: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps({"conn_type": "batch_llm", "host": "http://127.0.0.1:1"}))
    assert not sensor(batch_id="batch_1", conn_id="away", deferrable=False).poke(CONTEXT).is_done


def test_a_server_with_openais_api_alone_knows_no_keys_and_no_runs(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"conn_type": "batch_llm", "host": connected.url, "extra": json.dumps({"extensions": False})}
    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", json.dumps(plain))
    for arguments in ({}, {"key": "k"}):
        with pytest.raises(AirflowFailException, match="give the sensor a batch_id"):
            sensor(conn_id="plain", **arguments).execute(CONTEXT)


@pytest.fixture
def unwatched(connected: Any, submit: Submit, own_run: str) -> list[Batch]:
    """Two batches of the own run that nobody has watched, so that they are paused."""
    given = {"group": own_run, "holder": "h", "pause_unwatched_after": 3600}
    found = [submit(name, series=name, key=name, **given) for name in ("first", "second")]
    while connected.plan():
        pass
    with connected.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    Watching(connected.state.database).pause_due()
    assert all(paused(connected, batch) for batch in found)
    return found


def paused(connected: Any, batch: Batch) -> bool:
    """Whether it is paused since nobody watches it: a look at the store is no look at the batch."""
    return connected.state.batches.get("default", batch.id)["paused"] == PauseReason.UNWATCHED


@pytest.mark.parametrize(("arguments", "going_on"), [({"key": "second"}, 1), ({}, 2)])
def test_a_sensor_that_looks_again_and_again_watches_its_batches(
    arguments: dict[str, Any], going_on: int, connected: Any, unwatched: list[Batch]
) -> None:
    assert not sensor(deferrable=False, **arguments).poke(CONTEXT).is_done
    assert sum(not paused(connected, batch) for batch in unwatched) == going_on


async def test_a_sensor_that_defers_watches_all_batches_of_its_run_at_once(
    connected: Any, unwatched: list[Batch], own_run: str
) -> None:
    waiting = asyncio.create_task(event_of(BatchLLMSearchTrigger(CONN_ID, group=own_run, poll_interval=0.05)))
    await asyncio.to_thread(
        eventually, lambda: not any(paused(connected, batch) for batch in unwatched), what="all are watched"
    )
    await asyncio.to_thread(complete, connected)
    assert await waiting == {}


@pytest.mark.parametrize("found", [True, False])
async def test_a_search_goes_on_with_the_token_that_the_connection_has_by_then(
    found: bool, connected: Any, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(name: str) -> TokenRecord:
        token = new_token()
        connection = {"conn_type": "batch_llm", "host": connected.url, "password": token}
        monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))
        record: TokenRecord = connected.state.tokens.add(token, name=name)
        return record

    if found:
        await asyncio.to_thread(submit, key="k")
    old = named("old")
    waiting = asyncio.create_task(event_of(BatchLLMSearchTrigger(CONN_ID, key="k", poll_interval=0.05)))
    assert await still(waiting)
    named("new")
    connected.state.tokens.revoke(old.id)
    await asyncio.to_thread(submit, key="k")
    await asyncio.to_thread(complete, connected)
    assert await waiting == {}


async def test_a_search_whose_connection_cannot_be_read_for_a_moment_goes_on(
    connected: Any, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(submit, key="k")
    await asyncio.to_thread(complete, connected)
    monkeypatch.setattr("airflow_batch_llm.triggers.batch_llm.LOOKUP_PAUSES", (0.0, 0.0))
    known, failures = BatchLLMHook.aget_address, iter([ConnectionError("away")])

    async def sometimes(self: BatchLLMHook) -> Any:
        for failure in failures:
            raise failure
        return await known(self)

    monkeypatch.setattr(BatchLLMHook, "aget_address", sometimes)
    assert await event_of(BatchLLMSearchTrigger(CONN_ID, key="k", poll_interval=0.05)) == {}


@pytest.mark.parametrize("arguments", [{"batch_id": "batch_1"}, {"key": "k"}, {}])
def test_a_sensor_that_defers_does_so_too_while_the_service_does_not_answer(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps({"conn_type": "batch_llm", "host": "http://127.0.0.1:1"}))
    waiting = sensor(conn_id="away", **arguments)
    deferred(waiting)
    with pytest.raises(TaskDeferred):
        waiting.execute_complete(CONTEXT, {})


@pytest.mark.parametrize("name", ["external_dag_id", "external_run_id"])
@pytest.mark.parametrize("rendered", [None, "", "None"])
def test_a_run_that_is_not_named_in_the_end_is_not_taken_for_the_own_one(
    name: str, rendered: str | None, connected: Any
) -> None:
    waiting = sensor(on_empty="done", **{name: "{{ dag_run.conf.get('run') }}"})
    setattr(waiting, name, rendered)
    with pytest.raises(AirflowFailException, match=f"Rendered, {name} is"):
        waiting.execute(CONTEXT)


def test_a_search_survives_airflows_storing_of_it() -> None:
    trigger = BatchLLMSearchTrigger(CONN_ID, key="k", poll_interval=2)
    path, arguments = trigger.serialize()
    assert import_string(path)(**deserialize(serialize(arguments))).serialize() == (path, arguments)
    json.dumps(arguments)
