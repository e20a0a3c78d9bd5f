"""Tables of every kind through a real Airflow, a pool with real vLLM, and a real Postgres."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from airflow_processes import AirflowProcesses
from pool import Pool

from airflow_batch_llm.wire import Batch
from tests.conftest import eventually

pytestmark = [pytest.mark.airflow, pytest.mark.vllm]


def target(pool: Pool, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(pool.data_root / name).to_pylist()
    return rows


def batch(pool: Pool, batch_id: str) -> Batch:
    with pool.client() as client:
        return client.get(batch_id)


def batches_of(pool: Pool, run_id: str, task_id: str) -> list[Batch]:
    """The batches of one task of one run, newest first."""
    with pool.client() as client:
        return [found for found in client.list(limit=100).data if f"/{task_id}/{run_id}/" in str(found.series)]


@pytest.fixture(scope="module")
def tables_run(airflow: AirflowProcesses) -> str:
    run_id = airflow.trigger("tables", conf={"most": 8})
    assert airflow.wait_for_run("tables", run_id, seconds=90) == "success", airflow.task_states("tables", run_id)
    return run_id


def ended_well(airflow: AirflowProcesses, run_id: str, task_id: str) -> None:
    assert airflow.task_states("tables", run_id)[task_id] == "success", airflow.task_log("tables", run_id, task_id)


def test_rows_in_the_dag_come_back_as_they_were_with_answers(
    airflow: AirflowProcesses, pool: Pool, tables_run: str
) -> None:
    ended_well(airflow, tables_run, "inline")
    rows = [json.loads(line) for line in (pool.data_root / "inline.jsonl").read_text().splitlines()]
    assert [(row["text"], row["number"], row["llm_status"]) for row in rows] == [
        ("{{ no_template }}", 1, "success"),
        ("{x}", None, "success"),
    ]


def test_a_query_is_staged_and_answered_in_its_order(airflow: AirflowProcesses, pool: Pool, tables_run: str) -> None:
    ended_well(airflow, tables_run, "query")
    rows = target(pool, "query.parquet")
    assert [(row["id"], row["text"]) for row in rows] == [(id_, f"review {id_}") for id_ in range(7, -1, -1)]
    assert {row["llm_status"] for row in rows} == {"success"}
    found = batch(pool, airflow.xcom("tables", tables_run, "query")["batch_id"])
    assert found.dataset is not None
    assert len(found.dataset.source) == 3


def test_the_rows_of_a_decorated_function_are_answered(airflow: AirflowProcesses, pool: Pool, tables_run: str) -> None:
    ended_well(airflow, tables_run, "decorated")
    rows = target(pool, "decorated.parquet")
    assert [(row["text"], row["llm_status"]) for row in rows] == [("good", "success"), ("bad {{ word }}", "success")]


def test_a_dry_run_gives_its_estimate_and_writes_nothing(airflow: AirflowProcesses, pool: Pool) -> None:
    before = sorted(pool.data_root.rglob("*"))
    run_id = airflow.trigger("estimate")
    assert airflow.wait_for_run("estimate", run_id) == "success", airflow.task_log("estimate", run_id, "estimate")
    estimate = airflow.xcom("estimate", run_id, "estimate")
    rows = pq.read_metadata(pool.data_root / "packages.parquet").num_rows
    assert (estimate["rows"], estimate["tokens_from"]) == (rows, "tokenized sample")
    assert estimate["prompt_tokens"] > rows
    assert "Estimate of batch" in airflow.task_log("estimate", run_id, "estimate")
    assert sorted(pool.data_root.rglob("*")) == before
    assert airflow.call("GET", "/assets/events", params={"source_dag_id": "estimate"})["asset_events"] == []


def test_a_pydantic_model_makes_typed_columns(airflow: AirflowProcesses, pool: Pool) -> None:
    run_id = airflow.trigger("typed")
    assert airflow.wait_for_run("typed", run_id) == "success", airflow.task_log("typed", run_id, "typed")
    for row in target(pool, "typed.parquet"):
        assert row["llm_status"] == "success", row
        assert row["topic"] in ("price", "quality")
        assert isinstance(row["urgent"], bool)


def test_a_retry_after_a_broken_budget_asks_for_the_failed_rows_alone(airflow: AirflowProcesses, pool: Pool) -> None:
    run_id = airflow.trigger("error_budget")
    airflow.wait_for_task("error_budget", run_id, "answer", "up_for_retry")
    first = target(pool, "budget.parquet")
    path = f"/dags/error_budget/dagRuns/{run_id}/taskInstances/answer/logs/1"
    said = json.dumps(airflow.call("GET", path, params={"full_content": True})["content"])  # with the exception's text
    assert "1 of 6 rows of batch" in said, said
    assert "max_errors is 0" in said
    assert "Row 3: error" in said
    assert str(pool.data_root / "budget.parquet") in said
    assert airflow.wait_for_run("error_budget", run_id) == "failed"
    newest, oldest = batches_of(pool, run_id, "answer")
    assert (newest.generation, oldest.generation) == (2, 1)
    assert "batch " + newest.id + " asks for the failed ones again" in airflow.task_log(
        "error_budget", run_id, "answer", try_number=2
    )
    second = target(pool, "budget.parquet")
    assert [row["llm_status"] for row in second] == ["success"] * 3 + ["error"] + ["success"] * 2
    assert [row["llm_output"] for row in second] == [row["llm_output"] for row in first]


def test_a_cleared_task_asks_anew_or_reuses_as_it_is_told(airflow: AirflowProcesses, pool: Pool) -> None:
    run_id = airflow.trigger("cleared")
    assert airflow.wait_for_run("cleared", run_id, seconds=90) == "success"
    airflow.call(
        "POST", "/dags/cleared/clearTaskInstances", json={"dry_run": False, "dag_run_id": run_id, "only_failed": False}
    )
    assert airflow.wait_for_run("cleared", run_id, seconds=90) == "success"
    rerun, before = batches_of(pool, run_id, "rerun")
    reuse, _ = batches_of(pool, run_id, "reuse")
    assert (before.reuse, rerun.reuse, reuse.reuse) == ("auto", "never", "auto")
    assert (before.progress.rows_reused, rerun.progress.rows_reused, reuse.progress.rows_reused) == (0, 0, 4)


def test_the_first_rows_are_judged_on_a_worker_before_the_others_are_asked(
    airflow: AirflowProcesses, pool: Pool
) -> None:
    run_id = airflow.trigger("canaries")
    assert airflow.wait_for_run("canaries", run_id, seconds=120) == "failed"
    assert airflow.task_states("canaries", run_id) == {"passes": "success", "stops": "failed"}
    assert [row["llm_status"] for row in target(pool, "canary-passes.parquet")] == ["success"] * 6
    assert "have passed, so the others follow" in airflow.task_log("canaries", run_id, "passes")
    path = f"/dags/canaries/dagRuns/{run_id}/taskInstances/stops/logs/1"
    said = json.dumps(airflow.call("GET", path, params={"full_content": True})["content"])  # with the exception's text
    assert "canary_check returned False on 2 success" in said, said
    eventually((pool.data_root / "canary-stops.parquet.manifest.json").exists)
    assert [row["llm_status"] for row in target(pool, "canary-stops.parquet")] == ["success"] * 2 + ["cancelled"] * 4
