"""What the plugin adds to Airflow's pages, and that it costs the other processes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from airflow_processes import AirflowProcesses
from pool import free_port

from airflow_batch_llm import __version__
from airflow_batch_llm.pages.files import page_files
from airflow_batch_llm.plugins.batch_llm import SHOWN_OF, BatchLLMPlugin
from tests.airflow.pages.mounted import PAGE
from tests.airflow.pages.test_pages_own_page import every_call
from tests.conftest import eventually

pytestmark = pytest.mark.airflow

HEAVY = ("fastapi", "starlette", "uvicorn", "httpx", "anyio", "pydantic", "sqlalchemy")
USERS = "ada:admin,vera:viewer"


def in_a_new_process(code: str, **environment: str) -> str:
    """The last line that Python prints, after it has imported what every process of Airflow has."""
    first = "import json, sys; from airflow.sdk import BaseOperatorLink; import airflow_batch_llm.hooks.airflow_names"
    command = [sys.executable, "-c", f"{first}; {code}"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_the_plugins_import_brings_no_process_what_answers_requests() -> None:
    brought = json.loads(
        in_a_new_process(
            "before = set(sys.modules); import airflow_batch_llm.plugins.batch_llm; "
            "print(json.dumps(sorted(set(sys.modules) - before)))"
        )
    )
    ours = {name for name in brought if name.startswith("airflow_batch_llm.plugins.")}
    assert ours == {"airflow_batch_llm.plugins.batch_llm", "airflow_batch_llm.plugins.lazy_app"}
    assert [name for name in brought if name.partition(".")[0] in {*HEAVY, "airflow"}] == []
    assert len(brought) < 40


def test_every_place_has_a_route_and_a_bundle_of_its_own() -> None:
    apps = BatchLLMPlugin.react_apps
    assert [(app["destination"], app["url_route"]) for app in apps] == [
        ("nav", "llm-batches"),
        ("dag_run", "llm-run-batches"),
        ("task_instance", "llm-task-batches"),
    ]
    assert len({app["bundle_url"] for app in apps}) == len(apps)
    assert apps[-1]["applies_to"] == {"operator_name": SHOWN_OF}


def test_the_files_that_the_plugin_names_are_there_in_this_version() -> None:
    for app in BatchLLMPlugin.react_apps:
        for url in (app["bundle_url"], app["icon"], app["icon_dark_mode"]):
            split = urlsplit(url)
            assert split.path.removeprefix("/batch-llm/static/") in page_files()
            assert parse_qs(split.query)["v"] == [__version__]


def test_the_files_are_below_the_path_that_airflow_is_below() -> None:
    code = "from airflow_batch_llm.plugins.batch_llm import BatchLLMPlugin as P; print(P.react_apps[0]['bundle_url'])"
    url = in_a_new_process(code, AIRFLOW__API__BASE_URL="https://airflow.example/our/airflow/")
    assert url.startswith("/our/airflow/batch-llm/static/airflow.js?")


def test_the_operators_that_have_the_tab_are_those_that_have_batches() -> None:
    from airflow_batch_llm.decorators.batch_llm import _BatchLLMDecoratedOperator
    from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
    from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor

    named = [BatchLLMOperator.__name__, BatchLLMSensor.__name__, _BatchLLMDecoratedOperator.custom_operator_name]
    assert sorted(named) == sorted(SHOWN_OF)


def test_a_real_api_server_shows_the_pages_to_its_users_alone(airflow: AirflowProcesses) -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}/below/a/path"
    name = "api-server-with-users"
    environment = {
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": base,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS,
    }
    airflow.start("api-server", name=name, environment=environment)
    try:
        eventually(lambda: _answers(f"{base}/api/v2/monitor/health"), seconds=180, what="the api-server answers")
        _nothing_for_nobody(base)
        _registered(base, _token(base, airflow.home, "ada"))
        _answered(base, _token(base, airflow.home, "vera"))
    finally:
        airflow.end(name)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def _token(base: str, home: Path, user: str) -> str:
    passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
    answer = httpx.post(f"{base}/auth/token", json={"username": user, "password": passwords[user]})
    return str(answer.raise_for_status().json()["access_token"])


def _nothing_for_nobody(base: str) -> None:
    with httpx.Client(headers=PAGE) as nobody:
        for method, path in every_call():
            assert nobody.request(method, f"{base}/batch-llm{path}").status_code == 401, (method, path)
        assert nobody.get(f"{base}/batch-llm/openapi.json").status_code == 401


def _registered(base: str, token: str) -> None:
    with httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}) as ada:
        [plugin] = [found for found in ada.get("/api/v2/plugins").json()["plugins"] if found["name"] == "batch_llm"]
        assert ada.get("/api/v2/plugins/importErrors").json()["import_errors"] == []
        assert [app["url_route"] for app in plugin["react_apps"]] == [
            app["url_route"] for app in BatchLLMPlugin.react_apps
        ]
        for app in plugin["react_apps"]:
            bundle = ada.get(urlsplit(base)._replace(path="").geturl() + app["bundle_url"])
            assert bundle.headers["content-type"] == "text/javascript; charset=utf-8"
            assert "globalThis.AirflowPlugin" in bundle.text


def _answered(base: str, token: str) -> None:
    with httpx.Client(base_url=f"{base}/batch-llm", headers=PAGE, cookies={"_token": token}) as vera:
        assert vera.get("/api/v1/whoami").json()["scopes"] == ["read"]
        refused = vera.post("/api/v1/batches/overview", json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert refused.json()["error"]["code"] == "not_own_page"
