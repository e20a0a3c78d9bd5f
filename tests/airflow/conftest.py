"""An Airflow home of its own for these tests, and a connection to a real service."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from types import SimpleNamespace
from typing import Any

# Airflow reads these when it is imported, which the test modules do.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-home-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


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
