"""What a user sees of a batch in a real Airflow while its task is deferred and after, and sensors on batches."""

from __future__ import annotations

from typing import Any

import pytest
from airflow_processes import AirflowProcesses

from tests.conftest import eventually

pytestmark = [pytest.mark.airflow, pytest.mark.vllm]


def progress_while_deferred(airflow: AirflowProcesses, run_id: str) -> Any:
    """The task's XCom `progress`, with rows done, read while the task is deferred."""

    def written() -> Any:
        path = f"/dags/seen/dagRuns/{run_id}/taskInstances/classify/xcomEntries"
        keys = {entry["key"] for entry in airflow.call("GET", path)["xcom_entries"]}
        value = airflow.xcom("seen", run_id, "classify", key="progress") if "progress" in keys else None
        state = airflow.task_states("seen", run_id)["classify"]
        assert state == "deferred", f"The task is {state}, and its progress is {value}."
        return value

    # Airflow makes the API in its triggerer at the first call of it, which takes long on a busy machine.
    return eventually(written, seconds=120)


def test_a_task_shows_how_its_batch_is_while_it_is_deferred_and_after(airflow: AirflowProcesses) -> None:
    run_id = airflow.trigger("seen")
    airflow.wait_for_task("seen", run_id, "classify", "deferred")
    progress = progress_while_deferred(airflow, run_id)
    assert progress["status"] in ("validating", "in_progress")
    assert {"rows_total", "rows_done", "rows_failed", "rows_reused", "tokens_per_second", "eta_seconds"} < set(progress)

    assert airflow.wait_for_run("seen", run_id, seconds=300) == "success"
    manifest = airflow.xcom("seen", run_id, "classify")
    ended = airflow.xcom("seen", run_id, "classify", key="progress")
    assert (ended["batch_id"], progress["batch_id"]) == (manifest["batch_id"], manifest["batch_id"])
    assert (ended["status"], ended["rows_done"], ended["rows_failed"]) == ("completed", 3000, 1)
    assert ended["at"] > progress["at"]

    log = airflow.task_log("seen", run_id, "classify")
    assert f"::group::Failed rows of batch {manifest['batch_id']} by code" in log
    assert "context_length_exceeded: 1 rows." in log
    assert "far too long" not in log
    assert airflow.links("seen", run_id, "classify") == {
        "Batch": f"{airflow.url}/plugin/llm-batches?batch={manifest['batch_id']}"
    }
    [event] = airflow.call("GET", "/assets/events", params={"source_dag_id": "seen"})["asset_events"]
    assert event["extra"]["manifest"] == f"{manifest['files'][0]['uri']}.manifest.json"
    assert event["extra"]["prompt_tokens"] == manifest["prompt_tokens"] > 0


def test_batches_that_are_handed_over_are_waited_for_by_sensors(airflow: AirflowProcesses) -> None:
    run_id = airflow.trigger("handed_over")
    assert airflow.wait_for_run("handed_over", run_id) == "success"
    found = airflow.xcom("handed_over", run_id, "wait_for_the_run")
    assert [each["rows"] for each in found] == [1, 1]
    mapped = [each for each in airflow.task_instances("handed_over", run_id) if each["task_id"] == "classify"]
    assert {each["rendered_map_index"] for each in mapped} == {each["batch_id"] for each in found}
