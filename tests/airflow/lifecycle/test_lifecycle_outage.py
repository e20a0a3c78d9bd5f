"""What becomes of tasks while the service is away: nothing, until it is back."""

from __future__ import annotations

import time

import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle
from tests.airflow.lifecycle.task import eventually
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow

HALF_OF_IT = 300.0
"""Seconds of an outage of ten minutes."""


@WHOLE_ONLY
def test_a_service_that_is_away_for_ten_minutes_fails_nobody(lifecycle: Lifecycle) -> None:
    task, batch = lifecycle.deferred("is_answered_late")
    other, of_other = lifecycle.deferred("waits")
    lifecycle.service.end()
    time.sleep(HALF_OF_IT)
    other.mark("failed")
    time.sleep(HALF_OF_IT)
    assert task.record["state"] == "deferred"
    lifecycle.service.start()
    other.is_cancelled(of_other)
    assert task.goes_on(batch)
    worker = AnsweringWorker(lifecycle, model="answered late")  # type: ignore[arg-type]
    eventually(worker.work, "the rows are answered")
    task.reaches("success")
    assert task.record["try_number"] == 1
    assert [found.id for found in task.batches()] == [batch.id]
