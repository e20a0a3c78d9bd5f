"""A real Airflow and a real service, and what people and machines do to the tasks in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from airflow_processes import AirflowProcesses

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.wire import Batch
from tests.airflow.lifecycle.service import TOKEN, Service
from tests.airflow.lifecycle.task import Task, eventually

WHOLE_ONLY: Final = pytest.mark.skipif(not os.environ.get("WHOLE"), reason="long: with WHOLE=1")
DAGS: Final = Path(__file__).with_name("dags")
PYTHON: Final = os.environ.get("LIFECYCLE_PYTHON", sys.executable)
"""Where Airflow is installed, if it is another one than these tests have: see `make lifecycle`."""
SOON: Final[Mapping[str, str]] = {
    "AIRFLOW__CORE__PARALLELISM": "8",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "12",
}
"""What Airflow notices within minutes it notices within seconds; and a busy machine has time to answer a worker."""


@dataclass
class Lifecycle:
    """Airflow's four processes on Postgres, and a service without a worker: batches stay until a test ends them."""

    airflow: AirflowProcesses
    database: str
    """Airflow's, as psycopg takes it."""
    service: Service
    token: str = TOKEN

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def data_root(self) -> Path:
        return self.service.data_root

    @property
    def folder(self) -> Path:
        """What the Dags know as LIFECYCLE_FOLDER."""
        return self.data_root.parent

    def client(self) -> BatchClient:
        return BatchClient(self.url, self.token)

    def listed(self, batch: Batch) -> Batch:
        """The batch as a list shows it, which is no look at it."""
        with self.client() as client:
            return next(found for found in client.list(limit=100).data if found.id == batch.id)

    def trigger(self, dag_id: str, *, task_id: str = "answer", **conf: Any) -> Task:
        return Task(self, dag_id, self.airflow.trigger(dag_id, conf=conf), task_id)

    def deferred(self, dag_id: str, **conf: Any) -> tuple[Task, Batch]:
        """A task of a new run, deferred, whose trigger has looked at its batch; and the batch."""
        task = self.trigger(dag_id, **conf).reaches("deferred")
        batch = task.batch()
        self.is_watched(task, batch)
        return task, batch

    def is_watched(self, task: Task, batch: Batch, *, times: int = 1, try_number: int = 1) -> None:
        """Waits until a trigger has said ``times`` times how far ``batch`` is, in the log of the task."""
        said = f"Batch {batch.id} is in_progress"
        eventually(
            lambda: task.log(try_number).count(said) >= times,
            f"a trigger looks at batch {batch.id} of {task.dag_id}",
        )

    def triggerer_ids(self) -> list[int]:
        """The job ids of the triggerers that run, the newest first."""
        found = self.sql("select id from job where job_type = 'TriggererJob' and state = 'running' order by id desc")
        return [row[0] for row in found]

    def triggerer_of(self, task: Task) -> int | None:
        """The job id of the triggerer that has the task's trigger; None while none has it."""
        found = self.sql(
            "select triggerer_id from trigger t join task_instance i on i.trigger_id = t.id"
            " where i.dag_id = %s and i.run_id = %s and i.task_id = %s",
            *(task.dag_id, task.run_id, task.task_id),
        )
        return found[0][0] if found else None

    def move_trigger(self, task: Task, triggerer_id: int) -> None:
        """Hands the task's trigger to another triggerer, as Airflow does when one seemed to be dead."""
        self.sql(
            "update trigger set triggerer_id = %s where id = (select trigger_id from task_instance"
            " where dag_id = %s and run_id = %s and task_id = %s)",
            *(triggerer_id, task.dag_id, task.run_id, task.task_id),
        )

    def trigger_is_gone(self, task: Task) -> None:
        """Waits until no triggerer runs the task's trigger any more, and all that its end caused is done."""
        eventually(lambda: self.triggerer_of(task) is None, f"the trigger of {task.dag_id} is gone")
        self.triggerer_looks_twice()

    def triggerer_looks_twice(self) -> None:
        """Waits until each triggerer has been through its loop: a batch of another task was ended by it since."""
        task, batch = self.deferred("waits")
        task.mark("failed")
        task.is_cancelled(batch)

    def has_let_go(self, task: Task, batch: Batch) -> None:
        """Waits until the triggerer that had the task's trigger is done with it."""
        if self.asks_while_moving:
            said = f"batch {batch.id} goes on under another triggerer"
            eventually(lambda: said in task.log(), f"the old triggerer lets go of batch {batch.id}")

    @cached_property
    def version(self) -> str:
        """Airflow's."""
        return str(self.airflow.call("GET", "/version")["version"])

    def needs_a_scheduler_that_fails_tasks(self) -> None:
        """Skips a test in which the scheduler, not a worker, ends a try of a task, where that ends the scheduler."""
        if self.version == "3.4.0b2":
            pytest.skip("The scheduler of this beta dies of it (UniqueViolation: task_instance_current_key).")

    @property
    def asks_while_moving(self) -> bool:
        """Whether this Airflow tells a trigger that moves no more than one whose task is ended: before 3.4."""
        major, minor, *_ = self.version.split(".")
        return (int(major), int(minor)) < (3, 4)

    def sibling(self, task: Task) -> Task:
        """The other task of the same run."""
        return Task(self, task.dag_id, task.run_id, "sibling")

    def sql(self, statement: str, *values: Any) -> Sequence[Any]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def running_lifecycle(folder: Path, server: Any) -> Iterator[Lifecycle]:
    """Starts all of it below ``folder``, Airflow on a database of the Postgres ``server``; ends what it started."""
    server.psql("create database lifecycle")
    shutil.copytree(DAGS, folder / "dags")
    service = Service(folder)
    service.start()
    try:
        connection = {"conn_type": "batch_llm", "host": service.url, "password": TOKEN}
        environment = {
            **SOON,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": server.get_uri("lifecycle", driver="psycopg2"),
            "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection),
            "LIFECYCLE_FOLDER": str(folder),
        }
        home, dags = folder / "home", folder / "dags"
        with AirflowProcesses(home, dags=dags, environment=environment, python=PYTHON) as airflow:
            yield Lifecycle(airflow, server.get_uri("lifecycle"), service)
    finally:
        service.end()
