"""What becomes of a task's batch when the task is ended: by a person, by Airflow, or by what happens to its processes.

What happened to the batch is read from the service. The short ones run in `make test`, all of them with ``WHOLE=1``.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle
from tests.airflow.lifecycle.task import eventually

pytestmark = pytest.mark.airflow


def test_a_deferred_task_marked_failed_cancels_its_batch(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("waits")
    task.mark("failed")
    task.is_cancelled(batch)
    assert task.state == "failed"
    assert task.batch().id == batch.id


@WHOLE_ONLY
def test_a_deferred_task_marked_success_cancels_its_batch(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("waits")
    task.mark("success")
    task.is_cancelled(batch)
    assert task.state == "success"


@WHOLE_ONLY
def test_a_dag_run_that_takes_too_long_cancels_its_batches(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("runs_out")
    task.reaches("skipped").is_cancelled(batch)


@WHOLE_ONLY
def test_another_tasks_failure_cancels_the_batches_of_a_dag_that_fails_fast(
    lifecycle: Lifecycle, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    task, batch = lifecycle.deferred("fails_fast", fail_when_this_is_there=str(there))
    there.touch()
    task.reaches("skipped").is_cancelled(batch)


def test_a_batch_that_is_not_done_in_time_is_cancelled_and_its_task_fails(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("times_out")
    task.reaches("failed").is_cancelled(batch)
    assert f"Batch {batch.id} is cancel" in task.failure()


@WHOLE_ONLY
def test_a_trigger_that_dies_cancels_its_batch(lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("loses_its_trigger").reaches("failed")
    task.is_cancelled(task.batch())


@WHOLE_ONLY
def test_a_task_that_is_asked_to_end_on_the_worker_cancels_its_batch_and_a_retry_goes_on_with_it(
    lifecycle: Lifecycle,
) -> None:
    task = lifecycle.trigger("stays_on_the_worker").reaches("running")
    batch, first = task.batch(), task.record
    task.signal(signal.SIGTERM)
    task.is_cancelled(batch)
    task.is_again("running", after=first)
    newest = task.has_batches(2)[0]
    assert (newest.key, newest.generation) == (batch.key, 2)
    task.mark("failed")


@WHOLE_ONLY
def test_a_task_marked_failed_on_the_worker_cancels_its_batch(lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("stays_on_the_worker").reaches("running")
    batch = task.batch()
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_batch_that_is_to_be_kept_survives_its_deferred_task(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("is_kept")
    task.mark("failed")
    lifecycle.trigger_is_gone(task)
    assert task.goes_on(batch)


@WHOLE_ONLY
def test_a_batch_that_is_to_be_kept_survives_its_task_on_the_worker(lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("stays_and_is_kept").reaches("running")
    batch, first = task.batch(), task.record
    task.signal(signal.SIGTERM)  # as Airflow ends a task: it asks, and then it does not ask any more
    eventually(lambda: f"Batch {batch.id} goes on: cancel_on_kill is off" in task.log(), "the task was asked to end")
    task.signal(signal.SIGKILL)
    task.is_again("running", after=first)
    task.is_held_anew(batch)
    assert task.batch().id == batch.id
    assert task.goes_on(batch)
    task.mark("failed")
