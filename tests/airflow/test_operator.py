"""The operator against a real service: what it submits, when it defers, and who may cancel."""

from __future__ import annotations

import threading
from datetime import timedelta
from traceback import format_exception
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferralTimeout, TaskDeferred
from conftest import task_instance
from sqlalchemy import update

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.models import BatchStatus, PauseReason
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import Batch

pytestmark = pytest.mark.airflow

TIMED_OUT = {"error": "Trigger timeout"}
CANCELLED = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


def operator(**changes: Any) -> BatchLLMOperator:
    arguments = {
        "source": "reviews.parquet",
        "target": "labels.parquet",
        "model": "tiny",
        "prompt": "{text}?",
        "inline_wait": 0.0,
        **changes,
    }
    return BatchLLMOperator(task_id="classify", **arguments)


def deferred(ti: Any, *, clears: int = 0, **changes: Any) -> tuple[BatchLLMOperator, TaskDeferred]:
    task = operator(retries=2, **changes)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": ti, "dag_run": SimpleNamespace(clear_number=clears)})
    return task, deferral.value


def test_a_batch_that_is_not_done_at_once_defers(connected: Any) -> None:
    ti = task_instance()
    task, deferral = deferred(ti, timeout=timedelta(hours=1))
    batch = connected.client.get(deferral.trigger.batch_id)
    assert batch.holder == deferral.trigger.holder == str(ti.id)
    assert batch.series is not None
    assert batch.key == f"{batch.series}/2"
    assert deferral.method_name == "execute_complete"
    assert timedelta(minutes=59) < deferral.timeout <= timedelta(hours=1)
    assert task.operator_extra_links[0].get_link(task, ti_key=None) == f"/plugin/llm-batches?batch={batch.id}"


def test_a_batch_is_paused_while_nobody_watches_it_only_where_the_task_asks_for_that(connected: Any) -> None:
    for after, seconds in ((timedelta(hours=1), 3600), (None, None)):
        _, deferral = deferred(task_instance(), pause_unwatched_after=after)
        assert connected.client.get(deferral.trigger.batch_id).pause_unwatched_after == seconds


def test_a_request_file_on_our_service_has_a_key_and_a_holder_like_a_table(connected: Any) -> None:
    file = connected.client.upload_bytes("requests.jsonl", b"{}\n")
    task = BatchLLMOperator(task_id="classify", input_file_id=file.id, inline_wait=0.0, priority=7)
    ti = task_instance()
    with pytest.raises(TaskDeferred) as deferral:
        task.execute({"ti": ti})
    batch = connected.client.get(deferral.value.trigger.batch_id)
    assert (batch.input_file_id, batch.priority, batch.metadata) == (file.id, 7, None)
    assert batch.key == f"{batch.series}/2"
    assert batch.holder == deferral.value.trigger.holder == str(ti.id)


def test_a_retry_finds_the_batch_of_the_try_before_it_and_becomes_its_holder(connected: Any) -> None:
    _, first = deferred(task_instance())
    _, retry = deferred(task_instance())
    assert retry.trigger.batch_id == first.trigger.batch_id
    assert connected.client.get(first.trigger.batch_id).holder == retry.trigger.holder


def test_a_cleared_task_submits_anew_and_ends_the_batch_before(connected: Any) -> None:
    _, first = deferred(task_instance(max_tries=2))
    _, cleared = deferred(task_instance(max_tries=5))
    assert cleared.trigger.batch_id != first.trigger.batch_id
    assert connected.client.get(first.trigger.batch_id).status in CANCELLED


def test_nothing_is_submitted_if_the_task_could_not_defer(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = operator()
    task.poll_interval = timedelta(seconds=5)
    with pytest.raises(TypeError, match="nothing was submitted"):
        task.execute({"ti": task_instance()})
    assert connected.client.list().data == []


def test_what_the_service_refuses_fails_without_retries(connected: Any) -> None:
    with pytest.raises(AirflowFailException, match="words"):
        operator(prompt="{words}?").execute({"ti": task_instance()})


def test_a_task_that_does_not_wait_gives_the_batch_id(connected: Any) -> None:
    batch_id = operator(wait_for_completion=False).execute({"ti": task_instance()})
    assert not connected.client.get(batch_id).status.ended


def test_a_killed_task_cancels_its_batch(connected: Any) -> None:
    task, deferral = deferred(task_instance())
    task.on_kill()
    assert connected.client.get(deferral.trigger.batch_id).status in CANCELLED


def test_a_killed_task_leaves_its_batch_alone_if_told_so(connected: Any) -> None:
    task, deferral = deferred(task_instance(), cancel_on_kill=False)
    task.on_kill()
    assert connected.client.get(deferral.trigger.batch_id).status not in CANCELLED


def test_a_try_cannot_cancel_the_batch_of_the_try_after_it(connected: Any) -> None:
    old, _ = deferred(task_instance())
    _, new = deferred(task_instance())
    old.on_kill()
    assert connected.client.get(new.trigger.batch_id).status not in CANCELLED


def test_a_deferral_that_timed_out_cancels_the_batch(connected: Any) -> None:
    ti = task_instance()
    _, deferral = deferred(ti)
    resumed = operator()
    with pytest.raises(TaskDeferralTimeout, match=deferral.trigger.batch_id):
        resumed.resume_execution("__fail__", TIMED_OUT, {"ti": ti})
    assert connected.client.get(deferral.trigger.batch_id).status in CANCELLED
    assert resumed.linked_batch is not None


def test_a_deferral_that_timed_out_leaves_the_batch_to_a_later_holder(connected: Any) -> None:
    old = task_instance()
    deferred(old)
    _, new = deferred(task_instance())
    with pytest.raises(TaskDeferralTimeout, match="was not cancelled"):
        operator().resume_execution("__fail__", TIMED_OUT, {"ti": old})
    assert connected.client.get(new.trigger.batch_id).status not in CANCELLED


def test_a_resumed_task_needs_the_event_alone(connected: Any) -> None:
    _, deferral = deferred(task_instance())
    batch_id = deferral.trigger.batch_id
    end(connected, batch_id)
    resumed = operator()
    with pytest.raises(AirflowException, match="cancelled") as failure:
        resumed.resume_execution(
            "execute_complete", {"event": {"batch_id": batch_id, "status": "cancelled"}}, {"ti": task_instance()}
        )
    assert not isinstance(failure.value, AirflowFailException)
    assert resumed.linked_batch == batch_id


def test_an_event_with_an_error_fails_and_may_be_retried(connected: Any) -> None:
    with pytest.raises(AirflowException, match="No such batch") as failure:
        operator().execute_complete({}, {"batch_id": "batch_x", "error": "No such batch."})
    assert not isinstance(failure.value, AirflowFailException)


def test_a_resumed_task_links_to_its_batch_also_if_it_can_not_be_followed(connected: Any) -> None:
    resumed = operator()
    with pytest.raises(AirflowException):
        resumed.execute_complete({}, {"batch_id": "batch_x", "error": "No such batch."})
    link = resumed.operator_extra_links[0].get_link(resumed, ti_key=None)
    assert link == "/plugin/llm-batches?batch=batch_x"


def test_the_batches_of_a_dag_run_have_its_group(connected: Any) -> None:
    for task_id in ("classify", "count"):
        deferred(task_instance(task_id=task_id))
    deferred(task_instance(run_id="manual__2"))
    first, *_ = connected.client.list().data
    group = first.group.removesuffix("manual__2") + "manual__1"
    assert len(list(connected.client.of_group(group))) == 2


def test_a_batch_says_which_task_instance_it_comes_from(connected: Any) -> None:
    deferred(task_instance(map_index=3))
    [batch] = connected.client.list().data
    assert batch.origin is not None
    assert batch.origin.model_dump(exclude={"deployment"}) == {
        "dag_id": "reviews", "task_id": "classify", "run_id": "manual__1", "map_index": 3
    }  # fmt: skip
    assert (batch.series or "").startswith(f"{batch.origin.deployment}/reviews/")


def test_a_worker_that_waits_says_how_far_the_batch_is_and_how_it_ended(connected: Any) -> None:
    pushed: list[dict[str, Any]] = []
    shown = threading.Event()

    def push(key: str, value: dict[str, Any]) -> None:
        assert key == "progress"
        pushed.append(value)
        shown.set()

    def end_once_shown() -> None:
        shown.wait()
        end(connected, connected.client.list().data[0].id)

    ender = threading.Thread(target=end_once_shown)
    ender.start()
    context: Any = {"ti": task_instance(xcom_push=push)}
    with pytest.raises(AirflowException, match="cancelled"):
        operator(deferrable=False, poll_interval=0.1).execute(context)
    ender.join()
    assert [value["status"] for value in pushed] == ["validating", "cancelled"]
    assert context["batch_id"] == pushed[0]["batch_id"]
    assert context["rows"] == pushed[1]["rows_total"]


def test_a_task_told_so_leaves_no_progress(connected: Any) -> None:
    _, deferral = deferred(task_instance(), progress_xcom=False)
    assert deferral.trigger.progress_xcom is False
    ti = task_instance(xcom_push=lambda **_: pytest.fail("it was written"))
    end(connected, deferral.trigger.batch_id)
    with pytest.raises(AirflowException, match="cancelled"):
        operator(progress_xcom=False).execute_complete(
            {"ti": ti}, {"batch_id": deferral.trigger.batch_id, "status": "cancelled"}
        )


def test_a_task_that_waits_in_the_worker_gives_up_after_its_timeout(connected: Any) -> None:
    ti = task_instance()
    with pytest.raises(AirflowException, match="not done within"):
        operator(deferrable=False, poll_interval=0.1, timeout=timedelta(seconds=0.5)).execute({"ti": ti})
    assert connected.client.list().data[0].status in CANCELLED


def test_a_batch_that_ends_during_the_inline_wait_never_defers(connected: Any) -> None:
    ender = threading.Timer(1.0, lambda: end(connected, connected.client.list().data[0].id))
    ender.start()
    with pytest.raises(AirflowException, match="cancelled"):
        operator(inline_wait=20.0).execute({"ti": task_instance()})
    ender.join()


def end(connected: Any, batch_id: str) -> None:
    connected.client.cancel(batch_id)
    while not connected.client.get(batch_id).status.ended:
        assert connected.plan() or connected.assemble()


def killed_on_the_worker(connected: Any, *, clears: int) -> str:
    """The batch of a task that was killed, in a Dag run of which ``clears`` tasks were cleared until then."""
    task, deferral = deferred(task_instance(), clears=clears)
    task.on_kill()
    return str(deferral.trigger.batch_id)


def test_a_task_that_was_cleared_while_it_ran_on_the_worker_asks_anew(connected: Any) -> None:
    first = killed_on_the_worker(connected, clears=0)
    _, cleared = deferred(task_instance(), clears=1)
    _, retry = deferred(task_instance(), clears=1)
    old, new = connected.client.get(first), connected.client.get(cleared.trigger.batch_id)
    assert (new.generation, new.reuse) == (1, "never")
    assert new.key == f"{old.key}/1"
    assert retry.trigger.batch_id == new.id
    _, later = deferred(task_instance(), clears=2)
    assert later.trigger.batch_id == new.id


def test_a_task_that_was_cleared_twice_while_it_ran_on_the_worker_asks_anew_twice(connected: Any) -> None:
    keys = {connected.client.get(killed_on_the_worker(connected, clears=clears)).key for clears in (0, 1, 2)}
    assert len(keys) == 3


def test_a_retry_after_a_kill_goes_on_with_what_was_done_though_a_sibling_had_been_cleared(connected: Any) -> None:
    first = killed_on_the_worker(connected, clears=3)
    _, retry = deferred(task_instance(), clears=3)
    old, new = connected.client.get(first), connected.client.get(retry.trigger.batch_id)
    assert (new.key, new.generation) == (old.key, 2)


def test_a_retry_with_a_changed_prompt_never_takes_the_batch_before(connected: Any) -> None:
    _, first = deferred(task_instance())
    _, retry = deferred(task_instance(), prompt="{text}!")
    old, new = (connected.client.get(found.trigger.batch_id) for found in (first, retry))
    assert old.status in CANCELLED
    assert (new.key, new.generation, new.dataset.messages[0].content) == (old.key, 2, "{text}!")


def test_a_retry_with_a_changed_prompt_fails_if_told_so(connected: Any) -> None:
    _, first = deferred(task_instance())
    with pytest.raises(AirflowFailException, match="another spec"):
        operator(prompt="{text}!", on_changed="fail").execute({"ti": task_instance()})
    assert connected.client.get(first.trigger.batch_id).status not in CANCELLED


def test_a_task_that_is_killed_while_it_submits_ends_its_batch(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, submit = operator(), BatchClient.submit

    def killed(self: BatchClient, *arguments: Any) -> Batch:
        batch = submit(self, *arguments)
        task.on_kill()  # as Airflow's signal handler does, which lets the task go on
        return batch

    monkeypatch.setattr(BatchClient, "submit", killed)
    with pytest.raises(AirflowException, match="killed while it submitted"):
        task.execute({"ti": task_instance()})
    [batch] = connected.client.list().data
    assert batch.status in CANCELLED


def test_a_batch_that_was_paused_unwatched_goes_on_with_a_try_that_asks_for_no_pause(connected: Any) -> None:
    ti = task_instance()
    _, deferral = deferred(ti, pause_unwatched_after=timedelta(hours=1))
    batch_id = deferral.trigger.batch_id
    with connected.state.database.writing() as connection:
        connection.execute(update(batches).values(unwatched_at=1.0))
    connected.state.watching.pause_due()
    assert connected.state.batches.get("default", batch_id)["paused"] == PauseReason.UNWATCHED
    _, again = deferred(task_instance(id=ti.id))
    assert again.trigger.batch_id == batch_id
    assert connected.client.get(batch_id).paused is None


def test_what_makes_no_batch_once_rendered_is_named_without_its_values(connected: Any) -> None:
    task = operator(constants={"day": "{{ ds }}"}, metadata={"note": "{{ ds }}"}, choices=["a", "b"])
    task.constants, task.metadata = {"day": {"secret": 1}}, {"note": "secret" * 100}
    with pytest.raises(AirflowFailException, match=r"constants\.day: Input should be a valid string") as refused:
        task.execute({"ti": task_instance()})
    assert refused.value.__cause__ is None
    assert "".join(format_exception(refused.value)).count("secret") == 0
