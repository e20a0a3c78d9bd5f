"""One batch, however often and whenever a task's process is lost around its submit."""

from __future__ import annotations

import signal

import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle

pytestmark = pytest.mark.airflow


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("before_the_request", marks=WHOLE_ONLY),
        "while_it_is_answered",
        pytest.param("after_the_answer", marks=WHOLE_ONLY),
        pytest.param("before_the_deferral", marks=WHOLE_ONLY),
        pytest.param("after_the_deferral", marks=WHOLE_ONLY),
    ],
)
def test_a_worker_killed_around_the_submit_leaves_one_batch(moment: str, lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger(f"dies_{moment}").reaches("deferred")
    batch = task.batch()
    lifecycle.is_watched(task, batch, try_number=task.record["try_number"])
    assert len(task.batches()) == 1
    assert task.record["try_number"] == (1 if moment == "after_the_deferral" else 2)
    assert task.batch().holder == task.record["id"]
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_retry_after_a_kill_on_the_worker_goes_on_with_the_batch(lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("stays_on_the_worker").reaches("running")
    batch, first = task.batch(), task.record
    task.signal(signal.SIGKILL)
    task.is_again("running", after=first)
    task.is_held_anew(batch)
    assert task.batch().id == batch.id
    assert task.goes_on(batch)
    task.mark("failed")
    task.is_cancelled(batch)
