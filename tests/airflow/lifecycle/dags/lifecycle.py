"""Batches that nobody answers unless a test does: each Dag is one way for a task to end, or to begin again."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger

ASKED: dict[str, Any] = {
    "task_id": "answer",
    "source": [{"text": "good"}, {"text": "bad"}],
    "target": "{{ dag.dag_id }}/{{ run_id | replace(':', '-') }}.jsonl",
    "model": "m",
    "prompt": "{text}?",
    "poll_interval": 0.5,
    "inline_wait": 0.0,
}
ON_THE_WORKER: dict[str, Any] = {"inline_wait": 600.0, "retries": 2, "retry_delay": timedelta(seconds=1)}


class WatchedByABrokenTrigger(BatchLLMOperator):
    """Its trigger finds no connection, and dies of that."""

    def _trigger(self, batch_id: str, holder: str | None) -> BatchLLMTrigger:
        trigger = super()._trigger(batch_id, holder)
        trigger.conn_id = "nowhere"
        return trigger


OF_THE_DAG = ("schedule", "start_date", "end_date", "dagrun_timeout")


def prompt_by_now() -> str:
    """A prompt that a test changes between two tries, as if somebody had changed the Dag."""
    written = Path(os.environ["LIFECYCLE_FOLDER"]) / "prompt.txt"
    return written.read_text() if written.exists() else "{text}?"


def of_one_task(dag_id: str, operator: type[BatchLLMOperator] = BatchLLMOperator, /, **arguments: Any) -> None:
    """A Dag with the task ``answer``, and another one that has nothing to do with it."""
    of_dag = {"schedule": None, **{name: arguments.pop(name) for name in OF_THE_DAG if name in arguments}}

    @dag(dag_id=dag_id, **of_dag)
    def made() -> None:
        operator(**{**ASKED, **arguments})

        @task
        def sibling() -> None:
            pass

        sibling()

    made()


@dag(schedule=None, fail_fast=True)
def fails_fast() -> None:
    BatchLLMOperator(**ASKED)

    @task
    def fails(dag_run: Any) -> None:
        while not Path(dag_run.conf["fail_when_this_is_there"]).exists():
            time.sleep(0.2)
        raise RuntimeError("One task fails.")

    fails()


of_one_task("waits")
of_one_task("is_answered_late", model="answered late")
of_one_task("is_kept", cancel_on_kill=False)
of_one_task("reuses_when_cleared", on_clear="reuse")
of_one_task("pauses_unwatched", pause_unwatched_after=timedelta(minutes=2))
of_one_task("times_out", timeout=timedelta(seconds=15))
of_one_task("runs_out", dagrun_timeout=timedelta(seconds=30))
of_one_task("loses_its_trigger", WatchedByABrokenTrigger)
of_one_task("stays_on_the_worker", **ON_THE_WORKER)
of_one_task(
    "was_daily",
    model="answered",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    end_date=datetime(2026, 1, 3, tzinfo=UTC),
)
of_one_task("is_deployed_twice", conn_id="shared", **ON_THE_WORKER)
for word in ("resubmit", "fail"):
    changing = {"source": "changing.jsonl", "prompt": prompt_by_now(), "on_changed": word}
    of_one_task(f"{word}s_when_changed", **changing, **ON_THE_WORKER)
of_one_task("stays_and_is_kept", cancel_on_kill=False, **ON_THE_WORKER)
fails_fast()
