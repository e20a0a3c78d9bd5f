"""A second api-server of the same Airflow, below a path and for people who have rights on single Dags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx
from playwright.sync_api import BrowserContext
from pool import ROOT, free_port

from tests.airflow.lifecycle.harness import Lifecycle
from tests.airflow.lifecycle.service import TOKEN
from tests.airflow.lifecycle.task import eventually
from tests.pages.looking import Looks

PATH: Final = "/some/where"
PEOPLE: Final = {"root": "admin", "label_editor": "user", "label_reader": "viewer", "stranger": "viewer"}
"""With the role that Airflow's simple auth manager gives them; what they may do on which Dag: see `airflow_users`."""
PASSWORD: Final = "a password of these tests"


@dataclass(frozen=True)
class AirflowForPeople:
    """An address of Airflow at which everybody has to log in."""

    url: str

    def person(self, looks: Looks, name: str, scheme: str = "light") -> BrowserContext:
        """Their browser, after they have logged in."""
        asked = {"username": name, "password": PASSWORD}
        token = httpx.post(f"{self.url}/auth/token", json=asked, timeout=60).raise_for_status().json()["access_token"]
        context = looks.person(scheme, url=self.url)
        context.set_default_timeout(60_000)
        context.add_cookies([{"name": "_token", "value": token, "url": self.url}])
        return context


@contextmanager
def airflow_for_people(lifecycle: Lifecycle) -> Iterator[AirflowForPeople]:
    airflow, port = lifecycle.airflow, free_port()
    passwords = airflow.home / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(PEOPLE, PASSWORD)))
    url = f"http://127.0.0.1:{port}{PATH}"
    connection = {"conn_type": "batch_llm", "host": lifecycle.url, "password": TOKEN}
    environment = {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__AUTH_MANAGER": "tests.airflow.pages.airflow_users.PerDagAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in PEOPLE.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        # The tasks know this Airflow by its other address.
        "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps({**connection, "extra": {"deployment": airflow.url}}),
        "PYTHONPATH": str(ROOT),
    }
    airflow.start("api-server", name="people", environment=environment)
    try:
        eventually(lambda: _answers(url), f"Airflow answers at {url}; see {airflow.log_of('people')}")
        yield AirflowForPeople(url)
    finally:
        airflow.end("people")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/v2/version", timeout=10).is_success
    except httpx.HTTPError:
        return False
