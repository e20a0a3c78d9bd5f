"""The gate behind a batch's first rows, on a worker of Airflow's, against the real service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization
from conftest import task_instance
from pydantic import BaseModel

from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.triggers import batch_llm as trigger_module
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow
ROWS = [{"text": f"text {row}"} for row in range(8)]


class Topic(BaseModel):
    topic: str


def operator(**changes: Any) -> BatchLLMOperator:
    arguments = {"source": ROWS, "target": "out.parquet", "model": "m", "prompt": "{text}?", "inline_wait": 0.0}
    limits = {"canary_rows": 4, "max_error_rate": 0.25, "reuse": "never", "retries": 2}
    return BatchLLMOperator(task_id="t", **{**arguments, **limits, **changes})


def deferred(task: BatchLLMOperator, ti: Any) -> Any:
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": ti})
    return deferral.value


def work(connected: Any, **more: Any) -> list[int]:
    while connected.plan():
        pass
    worker = AnsweringWorker(connected, **more)
    worker.work()
    while connected.assemble():
        pass
    return sorted(worker.asked)


def event_of(deferral: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the trigger of a deferred task, stored and made again, gives."""
    monkeypatch.setattr(trigger_module, "SETTLE", trigger_module.timedelta(0))
    _, arguments = deferral.trigger.serialize()

    async def first() -> Any:
        return await anext(trigger_module.BatchLLMTrigger(**arguments).run())

    return dict(asyncio.run(asyncio.wait_for(first(), 30)).payload)


def back(deferral: Any, event: dict[str, Any], ti: Any, **changes: Any) -> Any:
    """The task goes on as Airflow has it: a new object, with what was kept of the deferral."""
    return operator(**changes).execute_complete({"ti": ti}, event, **deferral.kwargs)


def test_the_trigger_brings_the_task_back_to_judge_and_it_defers_again(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ti, seen = task_instance(), []
    check = {"canary_check": lambda rows: seen.extend(rows)}
    first = deferred(operator(**check), ti)
    assert work(connected, failing={3}) == [0, 1, 2, 3]
    event = event_of(first, monkeypatch)
    assert event == {"batch_id": first.trigger.batch_id, "status": "in_progress"}
    with pytest.raises(TaskDeferred) as second:
        back(first, event, ti, **check)
    assert second.value.trigger.serialize() == first.trigger.serialize()
    assert [(row["row"], row["llm_status"]) for row in seen] == [*((n, "success") for n in range(3)), (3, "error")]
    assert (seen[0]["llm_output"], "text" in seen[0]) == ("answer 0", False)
    assert work(connected) == [4, 5, 6, 7]
    result = back(second.value, event_of(second.value, monkeypatch), ti, **check)
    assert result["counts"] == {"success": 7, "error": 1}
    assert len(seen) == 4  # it passed, and is not judged again


@pytest.mark.parametrize(
    ("changes", "outcome", "said"),
    [
        (
            {},
            {"failing": {1, 2}},
            "2 of 4 rows failed (50.0%), and max_error_rate is 0.25. Row 1: error, engine_",
        ),
        (
            {"max_invalid_rate": 0.0, "choices": ["a", "b"]},
            {"invalid": {2}},
            "1 of 4 rows have an answer that does not fit (25.0%), and max_invalid_rate is 0. Row 2: invalid_output",
        ),
        ({"canary_check": lambda rows: len(rows) > 4}, {}, "canary_check returned False on 4 success."),
        (
            {"canary_check": lambda rows: {}[rows[0]["llm_output"]]},
            {"failing": {3}},
            "canary_check raised KeyError on 1 error, 3 success: 'answer 0'.",
        ),
    ],
    ids=["too many failed", "too many do not fit", "the check says no", "the check raises"],
)
def test_a_gate_that_stops_cancels_the_batch_and_says_what_it_saw(
    connected: Any, changes: dict[str, Any], outcome: dict[str, Any], said: str
) -> None:
    ti = task_instance()
    deferral = deferred(operator(**changes), ti)
    work(connected, **outcome)
    batch_id = deferral.trigger.batch_id
    with pytest.raises(AirflowException) as stopped:
        back(deferral, {"batch_id": batch_id, "status": "in_progress"}, ti, **changes)
    assert not isinstance(stopped.value, AirflowFailException)
    message = str(stopped.value)
    assert message.startswith(f"The first 4 rows of batch {batch_id}, its canary, did not pass: {said}")
    assert f"The other rows were not asked. Batch {batch_id} is cancelling; what was done is kept" in message
    assert work(connected) == []
    ended = connected.client.get(batch_id)
    assert ended.manifest is not None
    assert (ended.status, ended.manifest.counts["cancelled"]) == ("cancelled", 4)


def test_a_retry_in_the_middle_finds_the_batch_and_judges_it(connected: Any) -> None:
    first = deferred(operator(), task_instance())
    work(connected)
    ti, seen = task_instance(), []
    second = deferred(operator(canary_check=seen.append), ti)  # it finds the batch at its gate, and lets it go on
    assert second.trigger.batch_id == first.trigger.batch_id
    assert len(seen[0]) == 4
    assert connected.client.get(first.trigger.batch_id).canary == "passed"
    assert work(connected) == [4, 5, 6, 7]


def test_a_retry_after_a_gate_that_stopped_asks_for_the_failed_rows_and_is_judged_anew(connected: Any) -> None:
    ti = task_instance()
    first = deferred(operator(), ti)
    work(connected, failing={0, 1})
    with pytest.raises(AirflowException, match="did not pass"):
        back(first, {"batch_id": first.trigger.batch_id}, ti)
    assert work(connected) == []
    ti = task_instance()
    second = deferred(operator(), ti)
    assert work(connected) == [0, 1]
    assert connected.client.get(second.trigger.batch_id).paused == "canary"
    with pytest.raises(TaskDeferred):
        back(second, {"batch_id": second.trigger.batch_id}, ti)
    assert work(connected) == [4, 5, 6, 7]


def test_a_table_without_other_rows_is_judged_at_its_end(connected: Any) -> None:
    seen: list[Any] = []
    changes = {"canary_rows": 8, "canary_check": seen.append}
    ti = task_instance()
    deferral = deferred(operator(**changes), ti)
    assert len(work(connected)) == 8
    event = {"batch_id": deferral.trigger.batch_id, "status": "completed"}
    assert back(deferral, event, ti, **changes)["rows"] == 8
    assert [(row["row"], "text" in row) for row in seen[0]] == [(number, False) for number in range(8)]
    changes["canary_check"] = lambda rows: False
    with pytest.raises(AirflowException, match=r"canary_check returned False on 8 success\. All other rows are done"):
        back(deferral, event, ti, **changes)


def test_a_task_whose_gate_was_taken_out_of_its_dag_lets_the_batch_go_on(connected: Any) -> None:
    ti = task_instance()
    deferral = deferred(operator(), ti)
    work(connected, failing={0, 1, 2, 3})
    with pytest.raises(TaskDeferred):
        back(deferral, {"batch_id": deferral.trigger.batch_id}, ti, canary_rows=None, max_error_rate=None)
    assert work(connected) == [4, 5, 6, 7]


@contextmanager
def working(connected: Any) -> Iterator[None]:
    """Somebody who does whatever there is to do, until the block ends."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            work(connected)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_task_that_does_not_defer_does_the_same_where_it_is(connected: Any) -> None:
    seen: list[Any] = []
    task = operator(deferrable=False, canary_check=seen.append, poll_interval=0.1)
    with working(connected):
        assert task.execute({"ti": task_instance()})["counts"] == {"success": 8}
    assert [len(rows) for rows in seen] == [4]


def test_a_task_that_is_killed_while_it_judges_cancels_its_batch(connected: Any) -> None:
    ti = task_instance()
    deferral = deferred(operator(), ti)
    work(connected)

    def killed(rows: list[dict[str, Any]]) -> None:
        task.on_kill()

    task = operator(canary_check=killed)
    with pytest.raises(TaskDeferred):  # which Airflow does not get to see any more
        task.execute_complete({"ti": ti}, {"batch_id": deferral.trigger.batch_id}, **deferral.kwargs)
    assert work(connected) == []
    assert connected.client.get(deferral.trigger.batch_id).status == "cancelled"


def test_a_gate_that_opens_does_not_overrule_a_person_who_paused_the_batch(connected: Any) -> None:
    ti = task_instance()
    deferral = deferred(operator(), ti)
    work(connected)
    batch_id = deferral.trigger.batch_id
    task = operator(canary_check=lambda rows: connected.client.pause(batch_id) and None)
    with pytest.raises(TaskDeferred):
        task.execute_complete({"ti": ti}, {"batch_id": batch_id}, **deferral.kwargs)
    assert connected.client.get(batch_id).paused == PauseReason.REQUESTED
    assert connected.client.resume(batch_id).paused == PauseReason.CANARY  # and the trigger tells the task again


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"canary_rows": 0}, "canary_rows is 0"),
        ({"canary_rows": True}, "canary_rows is True"),
        ({"canary_rows": 10_001}, "from 1 to 10,000"),
        ({"canary_rows": None, "canary_check": print}, "canary_check goes with canary_rows"),
        ({"canary_check": "print"}, "is a function of a list of rows"),
        ({"max_error_rate": None}, "canary_rows needs canary_check or one of max_error_rate"),
        ({"wait_for_completion": False, "max_error_rate": None, "canary_check": print}, "a task that waits"),
        ({"dry_run": True, "max_error_rate": None, "canary_check": print}, "a task that waits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_gate_that_makes_no_sense_fails_when_the_dag_is_parsed(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        operator(**changes)


def test_a_dag_with_a_check_can_be_stored() -> None:
    with DAG("d") as dag:
        operator(canary_check=len)
        arguments = {"source": ROWS, "model": "m", "prompt": "{text}", "canary_rows": 3, "canary_check": len}
        BatchLLMOperator.partial(task_id="many", **arguments).expand(target=["a.parquet", "b.parquet"])
    assert set(DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_ids) == {"t", "many"}
