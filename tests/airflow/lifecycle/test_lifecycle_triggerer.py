"""What becomes of a batch when its triggerer goes: nothing, for the task is still deferred."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_batch_llm.models import PauseReason
from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle
from tests.airflow.lifecycle.task import eventually

pytestmark = pytest.mark.airflow

SECOND = "second-triggerer"


@pytest.fixture
def second_triggerer(lifecycle: Lifecycle) -> Iterator[int]:
    """The job id of one more triggerer."""
    first = lifecycle.triggerer_ids()
    lifecycle.airflow.start("triggerer", name=SECOND)
    yield eventually(lambda: set(lifecycle.triggerer_ids()) - set(first), "a second triggerer").pop()
    lifecycle.airflow.end(SECOND)


def test_a_trigger_that_moves_to_another_triggerer_keeps_its_batch(lifecycle: Lifecycle, second_triggerer: int) -> None:
    task, batch = lifecycle.deferred("waits")
    old = lifecycle.triggerer_of(task)
    other = next(found for found in lifecycle.triggerer_ids() if found != old)
    lifecycle.move_trigger(task, other)
    lifecycle.is_watched(task, batch, times=2)
    lifecycle.has_let_go(task, batch)
    assert task.goes_on(batch)
    assert lifecycle.triggerer_of(task) == other
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_triggerer_that_is_restarted_keeps_its_batches(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("waits")
    lifecycle.airflow.end("triggerer")
    assert task.goes_on(batch)
    lifecycle.airflow.start("triggerer")
    lifecycle.is_watched(task, batch, times=2)
    assert task.goes_on(batch)
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_triggerer_that_is_killed_and_started_again_keeps_its_batches(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("waits")
    lifecycle.airflow.kill("triggerer")
    lifecycle.airflow.start("triggerer")
    lifecycle.is_watched(task, batch, times=2)
    assert task.goes_on(batch)
    task.mark("failed")
    task.is_cancelled(batch)


@WHOLE_ONLY
def test_a_batch_that_no_triggerer_watches_is_paused_if_the_task_asked_for_that(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("pauses_unwatched")
    lifecycle.airflow.kill("triggerer")
    eventually(lambda: lifecycle.listed(batch).paused, f"batch {batch.id} is paused", seconds=240)
    assert lifecycle.listed(batch).paused == PauseReason.UNWATCHED
    lifecycle.airflow.start("triggerer")
    eventually(lambda: lifecycle.listed(batch).paused is None, f"batch {batch.id} goes on")
    assert task.goes_on(batch)
    task.mark("failed")
    task.is_cancelled(batch)
