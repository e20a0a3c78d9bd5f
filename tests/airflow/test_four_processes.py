"""A Dag through a real Airflow and a pool with real vLLM."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow_processes import AirflowProcesses
from pool import Pool

pytestmark = [pytest.mark.airflow, pytest.mark.vllm]


def test_a_task_defers_shows_its_progress_and_hands_its_target_on(airflow: AirflowProcesses, pool: Pool) -> None:
    run_id = airflow.trigger("long_batch")
    airflow.wait_for_task("long_batch", run_id, "classify", "deferred")
    while_deferred = log_while_deferred(airflow, run_id)
    assert "rows (" in while_deferred
    assert airflow.wait_for_run("long_batch", run_id) == "success"

    manifest = airflow.xcom("long_batch", run_id, "classify")
    rows = pq.ParquetFile(pool.data_root / "packages.parquet").metadata.num_rows
    assert manifest["rows"] == sum(manifest["counts"].values()) == rows
    assert airflow.xcom("long_batch", run_id, "count_rows") == rows
    batch_url = f"{airflow.url}/plugin/llm-batches?batch={manifest['batch_id']}"
    assert airflow.links("long_batch", run_id, "classify") == {"Batch": batch_url}
    left = f"/dags/long_batch/dagRuns/{run_id}/taskInstances/classify/state-store/batch_llm"
    assert airflow.call("GET", left)["value"]["batch_id"] == manifest["batch_id"]
    event = airflow.call("GET", "/assets/events", params={"source_dag_id": "long_batch"})["asset_events"][0]
    assert event["extra"]["batch_id"] == manifest["batch_id"]
    assert event["extra"]["counts"] == manifest["counts"]
    assert "::group::Counts of batch" in airflow.task_log("long_batch", run_id, "classify")


def test_the_example_dag_labels_every_package(airflow: AirflowProcesses, pool: Pool) -> None:
    run_id = airflow.trigger("classify_packages", conf={"model": pool.model})
    assert airflow.wait_for_run("classify_packages", run_id) == "success"
    labels = airflow.xcom("classify_packages", run_id, "count_labels")
    manifest: dict[str, Any] = airflow.xcom("classify_packages", run_id, "classify")
    assert sum(labels.values()) == manifest["rows"]


def test_the_connections_test_button_tells_right_from_wrong(airflow: AirflowProcesses, pool: Pool) -> None:
    connection = {"connection_id": "pool", "conn_type": "batch_llm", "host": pool.url}
    right = airflow.call("POST", "/connections/test", json={**connection, "password": pool.token})
    wrong = airflow.call("POST", "/connections/test", json={**connection, "password": "wrong"})
    assert right["status"] is True
    assert f"1 model: {pool.model}" in right["message"]
    assert wrong["status"] is False
    assert "token" in wrong["message"]


def log_while_deferred(airflow: AirflowProcesses, run_id: str) -> str:
    """The task's log with a line of progress, read before the task went on."""
    while True:
        log = airflow.task_log("long_batch", run_id, "classify")
        state = airflow.task_states("long_batch", run_id)["classify"]
        assert state == "deferred", f"The task is {state}, and logged until now: {log}"
        if "rows (" in log:
            return log
