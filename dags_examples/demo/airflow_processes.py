"""A real Airflow on this machine for a demo or a test: its four processes on loopback, and calls of its REST API.

`airflow standalone` is not used: it leaves its children behind when it ends, and does not notice when one dies.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import psutil
from pool import free_port

from airflow_batch_llm.child_process import end_group, start_child

COMPONENTS: Final[Mapping[str, Sequence[str]]] = {
    "api-server": (),
    # Their log servers would listen on every interface, and the logs are on this machine anyway.
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
WATCHED: Final = ("metadatabase", "scheduler", "dag_processor", "triggerer")
TASK_ENDED: Final = ("success", "failed", "skipped", "upstream_failed", "removed")
START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 10.0
PARSE_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.5


class AirflowProcesses:
    """Four processes of one Airflow on SQLite, with state and logs below ``home``, and nobody asked for a password.

    The Airflow is the one that ``python`` has: this one's, unless it is named.

    Use it as a context manager: it gives itself once all are healthy, and ends all that it started.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Path,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.home = home.resolve()
        self.python = python
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**self._settings(dags.resolve()), **(environment or {})}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx.Client(base_url=self.url, timeout=90.0, trust_env=False)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def processes(self) -> list[psutil.Process]:
        """The four that run, and all that they started."""
        started = [psutil.Process(child.pid) for child in self._children.values() if child.poll() is None]
        return [*started, *(found for process in started for found in process.children(recursive=True))]

    def stop(self) -> None:
        """Ends the four processes and all that they started."""
        family = self.processes()
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            end_group(child, grace_seconds=STOP_SECONDS)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=STOP_SECONDS)
        self._children.clear()
        self._http.close()

    def start(self, component: str, *, name: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Starts a component again, or one more of its kind under a ``name`` of its own and with other settings."""
        self._spawn(name or component, component, *COMPONENTS[component], environment=environment)

    def end(self, name: str) -> None:
        """Asks one process to end, as an administrator would, and waits until it and what it started are gone."""
        child = self._children.pop(name)
        child.terminate()
        child.wait(STOP_SECONDS * 3)
        end_group(child, grace_seconds=STOP_SECONDS)

    def kill(self, name: str) -> None:
        """Ends one process and what it started with SIGKILL, as a machine that is lost."""
        child = self._children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)  # each leads a group of its own
        child.wait()

    def trigger(self, dag_id: str, *, conf: Mapping[str, Any] | None = None, logical_date: str | None = None) -> str:
        """Starts a Dag run, once the Dag is known, and gives the run's id."""
        _until(
            lambda: self._knows(dag_id),
            PARSE_SECONDS,
            f"the Dag {dag_id} is parsed; see {self.log_of('dag-processor')}",
        )
        self.call("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
        run = self.call(
            "POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": logical_date, "conf": dict(conf or {})}
        )
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(self, dag_id: str, run_id: str, *, seconds: float = 180.0) -> str:
        """The state in which the run ended."""
        ended = ("success", "failed")
        _until(lambda: self.run_state(dag_id, run_id) in ended, seconds, f"run {run_id} of {dag_id} ends")
        return self.run_state(dag_id, run_id)

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, state: str, *, seconds: float = 120.0) -> None:
        """Returns when the task is seen in ``state``. Raises RuntimeError if it ended in another one."""

        def reached() -> bool:
            seen = self.task_states(dag_id, run_id).get(task_id)
            if seen in TASK_ENDED and seen != state:
                raise RuntimeError(f"Task {task_id} of run {run_id} is {seen} and will not be {state}.")
            return seen == state

        _until(reached, seconds, f"task {task_id} is {state}")

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")[
            "task_instances"
        ]
        return found

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of each task that is not mapped, by its id."""
        return {found["task_id"]: found["state"] for found in self.task_instances(dag_id, run_id)}

    def task_log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1) -> str:
        """What the task logged so far, on the worker and in the triggerer, one event a line."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self.call("GET", path, params={"full_content": True})["content"]
        return "\n".join(str(line["event"]) if isinstance(line, dict) else str(line) for line in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value") -> Any:
        """What the task left under ``key``, as Python values."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", path, params={"deserialize": False, "stringify": False})["value"]

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
        """The extra links of a task, by their name."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
        found: dict[str, str | None] = self.call("GET", path)["extra_links"]
        return found

    def token(self) -> str:
        """What a browser sends as the cookie `_token`, or a program as `Authorization: Bearer …`."""
        return str(self._http.get("/auth/token").raise_for_status().json()["access_token"])

    def call(self, method: str, path: str, **request: Any) -> Any:
        """What Airflow's REST API answers below ``/api/v2``; None for no content. Raises RuntimeError if it refuses."""
        response = self._http.request(method, f"/api/v2{path}", headers={"Accept": "application/json"}, **request)
        if not response.is_success:
            raise RuntimeError(f"Airflow answered {method} {path} with {response.status_code}: {response.text[:500]}")
        return response.json() if response.content else None

    def log_of(self, component: str) -> Path:
        """The file with what a process printed."""
        return self.home / f"{component}.log"

    def _start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self._spawn("db-migrate", "db", "migrate")
        _until(lambda: self._children["db-migrate"].poll() is not None, START_SECONDS, "the database is made")
        if self._children.pop("db-migrate").returncode != 0:
            raise RuntimeError(f"`airflow db migrate` failed. See {self.log_of('db-migrate')}.")
        for component, options in COMPONENTS.items():
            self._spawn(component, component, *options)
        _until(self._healthy, START_SECONDS, f"all four processes are healthy; see the logs in {self.home}")
        self._http.headers["Authorization"] = f"Bearer {self.token()}"

    def _spawn(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        command = [self.python, "-m", "airflow", *arguments]
        settings = {**self._environment, **(environment or {})}
        with self.log_of(name).open("ab") as output:
            self._children[name] = start_child(command, environment=settings, output=output)

    def _healthy(self) -> bool:
        for component, child in self._children.items():
            if child.poll() is not None:
                raise RuntimeError(
                    f"Airflow's {component} ended with {child.returncode}. See {self.log_of(component)}."
                )
        try:
            health = self._http.get("/api/v2/monitor/health").json()
        except (httpx.HTTPError, ValueError):
            return False
        return all(health[part] and health[part]["status"] == "healthy" for part in WATCHED)

    def _knows(self, dag_id: str) -> bool:
        return self._http.get(f"/api/v2/dags/{dag_id}").is_success

    def _settings(self, dags: Path) -> dict[str, str]:
        return {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home / 'airflow.db'}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",  # SQLite locks up under more
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }


def _until(check: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {seconds:.0f} s in vain until {what}.")
        time.sleep(LOOK_SECONDS)
