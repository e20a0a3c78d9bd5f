"""One task instance of a real Airflow: what is done to it, and what became of its batches in the service."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psutil
import pytest
from airflow_processes import AirflowProcesses

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch

if TYPE_CHECKING:
    from tests.airflow.lifecycle.harness import Lifecycle

ENDED: Final = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)
PATIENCE: Final = 180.0
"""Seconds. The first look of a triggerer at a task's state makes an API in its process: 7 s of a free processor."""


def eventually(check: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """Asks until the answer is true, and gives it; not as often as to keep Airflow from its work."""
    end = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > end:
            pytest.fail(f"Not within {seconds:.0f} s: {what}; last answer: {answer!r}")
        time.sleep(0.3)
    return answer


@dataclass
class Task:
    """One task instance of a run, with what is done to it and what became of its batches."""

    lifecycle: Lifecycle
    dag_id: str
    run_id: str
    task_id: str = "answer"

    @property
    def airflow(self) -> AirflowProcesses:
        return self.lifecycle.airflow

    @property
    def record(self) -> dict[str, Any]:
        path = f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}"
        return dict(self.airflow.call("GET", path))

    @property
    def state(self) -> str | None:
        return self.airflow.task_states(self.dag_id, self.run_id)[self.task_id]

    def reaches(self, state: str, *, seconds: float = 120.0) -> Task:
        """Waits until the task is in ``state``; gives itself."""
        self.airflow.wait_for_task(self.dag_id, self.run_id, self.task_id, state, seconds=seconds)
        return self

    def is_again(self, state: str, *, after: Mapping[str, Any]) -> Task:
        """Waits until another try than that of the record ``after`` is in ``state``."""

        def again() -> bool:
            now = self.record
            return bool(now["state"] == state and now["id"] != after["id"])

        eventually(again, f"another try of {self.dag_id}.{self.task_id} is {state}")
        return self

    def mark(self, state: str) -> None:
        """As the buttons "Mark as success" and "Mark as failed" do."""
        path = f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}"
        self.airflow.call("PATCH", path, json={"new_state": state})

    def clear(self, task_id: str | None = None) -> None:
        """As the button "Clear task instance" does; of another task of the run, if one is named."""
        self.airflow.call(
            "POST",
            f"/dags/{self.dag_id}/clearTaskInstances",
            json={
                "dry_run": False,
                "dag_run_id": self.run_id,
                "task_ids": [task_id or self.task_id],
                "only_failed": False,
                "reset_dag_runs": True,
            },
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process that runs the task on the worker."""
        self.processes()[0].send_signal(number)

    def processes(self) -> list[psutil.Process]:
        """What runs the task on the worker: its process, and the one that watches over that and tells Airflow."""
        pid = eventually(lambda: self.record["pid"], f"{self.dag_id}.{self.task_id} has a process")
        own = psutil.Process(pid)
        return [own, psutil.Process(own.ppid())]

    def log(self, try_number: int = 1) -> str:
        return self.airflow.task_log(self.dag_id, self.run_id, self.task_id, try_number=try_number)

    def batches(self) -> list[Batch]:
        """All batches that the service has of this task instance, the newest first."""
        series = f"/{self.dag_id}/{self.task_id}/{self.run_id}/"
        found: list[Batch] = []
        with self.lifecycle.client() as client:
            page = client.list(limit=100)
            while True:
                found += [batch for batch in page.data if series in f"{batch.series}/"]
                if not page.has_more:
                    return found
                page = client.list(limit=100, after=page.last_id)

    def batch(self) -> Batch:
        """The one batch of this task instance, once it is there."""
        found = eventually(self.batches, f"{self.dag_id} submits")
        assert len(found) == 1, [(batch.id, batch.key, batch.status) for batch in found]
        return found[0]

    def planned_batch(self) -> Batch:
        """The one batch, once it can be worked on: its source is read, and a change of that fails it no more."""
        eventually(lambda: self.batch().status == BatchStatus.IN_PROGRESS, f"the batch of {self.dag_id} is planned")
        return self.batch()

    def has_batches(self, count: int) -> list[Batch]:
        """Its batches, the newest first, once there are ``count``; never more."""
        eventually(lambda: len(self.batches()) >= count, f"{self.dag_id} has {count} batches")
        found = self.batches()
        assert len(found) == count, [(batch.id, batch.key, batch.status) for batch in found]
        return found

    def is_held_anew(self, batch: Batch) -> None:
        """Waits until the task's present try holds ``batch``, which another try held."""

        def held() -> bool:
            with self.lifecycle.client() as client:
                holder = client.get(batch.id).holder
            return bool(holder != batch.holder and holder == self.record["id"])

        eventually(held, f"another try holds batch {batch.id}")

    def failure(self, try_number: int = 1) -> str:
        """The task's whole log, with the texts of exceptions."""
        path = f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/{self.task_id}/logs/{try_number}"
        return json.dumps(self.airflow.call("GET", path, params={"full_content": True})["content"])

    def is_cancelled(self, batch: Batch) -> Batch:
        """Waits until the service says that ``batch`` was cancelled, and gives it."""

        def ended() -> Batch | None:
            with self.lifecycle.client() as client:
                now = client.get(batch.id)
            return now if now.status in ENDED else None

        found: Batch = eventually(ended, f"batch {batch.id} is cancelled")
        return found

    def goes_on(self, batch: Batch) -> bool:
        """Whether ``batch`` has not been cancelled."""
        with self.lifecycle.client() as client:
            return not client.get(batch.id).status.ended and client.get(batch.id).status not in ENDED
