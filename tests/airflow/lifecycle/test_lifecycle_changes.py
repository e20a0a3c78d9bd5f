"""A later try finds its own batch and no other: not one of another prompt, source, deployment or life of the task."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY, Lifecycle
from tests.airflow.lifecycle.task import Task, eventually
from tests.service.answering import AnsweringWorker

pytestmark = [pytest.mark.airflow, WHOLE_ONLY]


def change_the_prompt(lifecycle: Lifecycle) -> None:
    (lifecycle.folder / "prompt.txt").write_text("{text}, really?")


def change_the_source(lifecycle: Lifecycle) -> None:
    (lifecycle.data_root / "changing.jsonl").write_text('{"text": "neither"}\n')


CHANGES = pytest.mark.parametrize("change", [change_the_prompt, change_the_source], ids=lambda change: change.__name__)


@pytest.fixture
def changing(lifecycle: Lifecycle) -> Iterator[Path]:
    """The source of the Dags that change, and their prompt, as they were at first."""
    source = lifecycle.data_root / "changing.jsonl"
    source.write_text('{"text": "good"}\n{"text": "bad"}\n')
    yield source
    (lifecycle.folder / "prompt.txt").unlink(missing_ok=True)


@CHANGES
@pytest.mark.usefixtures("changing")
def test_a_retry_after_a_change_replaces_the_batch(change: Callable[[Lifecycle], None], lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("resubmits_when_changed").reaches("running")
    old, first = task.planned_batch(), task.record
    change(lifecycle)
    task.signal(signal.SIGKILL)
    task.is_again("running", after=first)
    new = task.has_batches(2)[0]
    task.is_cancelled(old)
    assert (new.key, new.generation, new.holder) == (old.key, 2, task.record["id"])
    task.mark("failed")
    task.is_cancelled(new)


@CHANGES
@pytest.mark.usefixtures("changing")
def test_a_retry_after_a_change_fails_where_it_is_to(change: Callable[[Lifecycle], None], lifecycle: Lifecycle) -> None:
    task = lifecycle.trigger("fails_when_changed").reaches("running")
    batch = task.planned_batch()
    change(lifecycle)
    task.signal(signal.SIGKILL)
    task.reaches("failed")
    assert "another spec or from a source that has changed" in task.failure(2)
    assert task.goes_on(task.batch())
    with lifecycle.client() as client:
        client.cancel(batch.id)


def test_two_deployments_with_one_dag_never_meet(lifecycle: Lifecycle) -> None:
    of_staging = {"conn_type": "batch_llm", "host": lifecycle.url, "password": lifecycle.token}
    named = {"connection_id": "shared", **of_staging}
    lifecycle.airflow.call("POST", "/connections", json={**named, "extra": '{"deployment": "staging"}'})
    task = lifecycle.trigger("is_deployed_twice").reaches("running")
    staging, first = task.batch(), task.record
    lifecycle.airflow.call("PATCH", "/connections/shared", json={**named, "extra": '{"deployment": "production"}'})
    task.signal(signal.SIGKILL)
    task.is_again("running", after=first)
    production, _ = task.has_batches(2)
    assert str(staging.key).removeprefix("staging") == str(production.key).removeprefix("production")
    assert task.goes_on(staging)
    task.mark("failed")
    task.is_cancelled(production)
    assert task.goes_on(staging)
    with lifecycle.client() as client:
        client.cancel(staging.id)


def test_a_backfill_that_reprocesses_a_run_asks_anew(lifecycle: Lifecycle) -> None:
    day = "2026-01-02T00:00:00Z"
    task = Task(lifecycle, "was_daily", lifecycle.airflow.trigger("was_daily", logical_date=day)).reaches("deferred")
    worker = AnsweringWorker(lifecycle, model="answered")  # type: ignore[arg-type]
    eventually(worker.work, "the first run's rows are answered")
    assert lifecycle.airflow.wait_for_run(task.dag_id, task.run_id) == "success"
    old, first = task.batch(), task.record
    backfill = {"dag_id": task.dag_id, "from_date": day, "to_date": day, "reprocess_behavior": "completed"}
    lifecycle.airflow.call("POST", "/backfills", json=backfill)
    task.is_again("deferred", after=first)
    assert lifecycle.airflow.call("GET", f"/dags/{task.dag_id}/dagRuns/{task.run_id}")["run_type"] == "backfill"
    new = task.has_batches(2)[0]
    assert (new.key != old.key, new.reuse) == (True, "never")
    assert eventually(worker.work, "the second run's rows are asked anew") == 2
    assert lifecycle.airflow.wait_for_run(task.dag_id, task.run_id) == "success"
    assert [batch.status for batch in task.batches()] == ["completed", "completed"]


def test_a_try_that_was_given_up_and_wakes_cancels_nothing_of_the_try_after_it(lifecycle: Lifecycle) -> None:
    lifecycle.needs_a_scheduler_that_fails_tasks()
    task = lifecycle.trigger("stays_on_the_worker").reaches("running")
    batch, first, frozen = task.batch(), task.record, task.processes()
    for process in reversed(frozen):
        process.suspend()
    task.is_again("running", after=first)
    task.is_held_anew(batch)
    for process in frozen:
        process.resume()
    psutil.wait_procs(frozen[:1], timeout=120)
    assert not frozen[0].is_running()
    assert task.goes_on(task.batch())
    task.mark("failed")
    task.is_cancelled(batch)
