"""What a cleared task does with the batch it had, and what its neighbours do not do to it."""

from __future__ import annotations

import signal

import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle

pytestmark = pytest.mark.airflow


def test_a_deferred_task_that_is_cleared_asks_anew_and_cancels_the_batch_before(lifecycle: Lifecycle) -> None:
    task, old = lifecycle.deferred("waits")
    first = task.record
    task.clear()
    task.is_again("deferred", after=first)
    new = task.has_batches(2)[0]
    lifecycle.is_watched(task, new, try_number=2)
    assert new.key != old.key
    assert (old.reuse, new.reuse) == ("auto", "never")
    task.is_cancelled(old)
    assert task.goes_on(new)
    assert new.holder == task.record["id"]
    task.mark("failed")
    task.is_cancelled(new)


@WHOLE_ONLY
def test_a_task_that_is_to_reuse_when_cleared_gets_a_new_batch_that_may_reuse(lifecycle: Lifecycle) -> None:
    task, old = lifecycle.deferred("reuses_when_cleared")
    first = task.record
    task.clear()
    task.is_again("deferred", after=first)
    new = task.has_batches(2)[0]
    assert (new.key != old.key, new.reuse) == (True, "auto")
    task.is_cancelled(old)
    task.mark("failed")
    task.is_cancelled(new)


@WHOLE_ONLY
def test_a_sibling_that_is_cleared_changes_nothing(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("waits")
    before = task.record
    sibling = lifecycle.sibling(task).reaches("success")
    first = sibling.record
    sibling.clear()
    sibling.is_again("success", after=first)
    assert task.record["id"] == before["id"]
    assert task.batch().id == batch.id
    assert task.goes_on(batch)
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_task_that_is_cleared_while_it_runs_on_the_worker_asks_anew(lifecycle: Lifecycle) -> None:
    lifecycle.needs_a_scheduler_that_fails_tasks()
    task = lifecycle.trigger("stays_on_the_worker").reaches("running")
    old, first = task.batch(), task.record
    task.clear()
    task.is_cancelled(old)
    task.is_again("running", after=first)
    new = task.has_batches(2)[0]
    assert (new.key != old.key, new.reuse, new.generation) == (True, "never", 1)
    second = task.record
    task.signal(signal.SIGKILL)
    task.is_again("running", after=second)
    task.is_held_anew(new)
    assert len(task.batches()) == 2
    task.mark("failed")
    task.is_cancelled(new)
