"""Other providers' operators, unmodified, in a real Airflow, with request files on a pool with real vLLM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow_processes import AirflowProcesses
from pool import Pool

pytestmark = [pytest.mark.airflow, pytest.mark.vllm]

DAG = "foreign_operators"
ROWS = 12
"""As many prompts as the Dag has."""


@dataclass(frozen=True)
class Run:
    """The one run of all tests: common.ai's operators look every 30 s at most, so all wait at the same time."""

    airflow: AirflowProcesses
    run_id: str
    results: Path
    state: str

    def xcom(self, task_id: str) -> Any:
        return self.airflow.xcom(DAG, self.run_id, task_id)

    def rows(self, task_id: str) -> list[dict[str, Any]]:
        """The rows that the task landed, in the order of its prompts."""
        [file] = (self.results / task_id).glob("*.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return sorted(rows, key=lambda row: row["index"])


@pytest.fixture(scope="module")
def run(airflow: AirflowProcesses, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    results = tmp_path_factory.mktemp("results")
    with pool.client() as client:
        file_id = client.upload_bytes("requests.jsonl", requests(pool.model)).id
    conf = {"file_id": file_id, "results": f"file://{results}"}
    run_id = airflow.trigger(DAG, conf=conf)
    return Run(airflow, run_id, results, airflow.wait_for_run(DAG, run_id, seconds=300))


def requests(model: str) -> bytes:
    bodies = [
        {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": str(row)}]} for row in range(ROWS)
    ]
    lines = [
        {"custom_id": f"r{row}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for row, body in enumerate(bodies)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_every_foreign_operator_succeeds(run: Run) -> None:
    states = run.airflow.task_states(DAG, run.run_id)
    logs = [run.airflow.task_log(DAG, run.run_id, task) for task, state in states.items() if state != "success"]
    assert (run.state, set(states.values())) == ("success", {"success"}), "\n".join([str(states), *logs])


@pytest.mark.parametrize("task_id", ["openai_text", "openai_label", "adapter_text", "adapter_label"])
def test_every_prompt_of_a_common_ai_batch_has_its_row(task_id: str, run: Run) -> None:
    manifest = run.xcom(task_id)
    assert manifest["request_count"] == ROWS
    assert manifest["counts"] == {"succeeded": ROWS} | dict.fromkeys(
        ["errored", "invalid_output", "expired", "cancelled", "missing"], 0
    )
    rows = run.rows(task_id)
    assert [row["index"] for row in rows] == list(range(ROWS))
    assert {row["status"] for row in rows} == {"success"}
    assert {row["model"] for row in rows} == {"tiny"}
    assert all(row["usage"]["output_tokens"] > 0 for row in rows)


@pytest.mark.parametrize("task_id", ["openai_label", "adapter_label"])
def test_every_structured_answer_fits_its_schema(task_id: str, run: Run) -> None:
    for row in run.rows(task_id):
        assert row["output"]["topic"] in ("price", "quality", "delivery")
        assert isinstance(row["output"]["urgent"], bool)


def test_both_ways_to_common_ai_give_a_text_for_every_prompt(run: Run) -> None:
    for task_id in ("openai_text", "adapter_text"):
        assert all(isinstance(row["output"], str) for row in run.rows(task_id))


def test_a_batch_that_openais_operator_triggered_has_all_of_its_results(run: Run, pool: Pool) -> None:
    with pool.client() as client:
        batch = client.get(run.xcom("trigger"))
        assert batch.request_counts.completed == ROWS
        assert batch.output_file_id is not None
        lines = [json.loads(line) for line in client.file_lines(batch.output_file_id)]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"r{row}" for row in range(ROWS))


def test_our_own_operator_gives_the_result_files_of_a_request_file(run: Run, pool: Pool) -> None:
    result = run.xcom("own")
    assert result["request_counts"] == {"total": ROWS, "completed": ROWS, "failed": 0}
    assert result["error_file_id"] is None
    assert result["usage"]["output_tokens"] > 0
    with pool.client() as client:
        assert len(list(client.file_lines(result["output_file_id"]))) == ROWS


def test_the_pools_own_adapter_submits_under_a_key(run: Run, pool: Pool) -> None:
    with pool.client() as client:
        batch = client.get(run.xcom("adapter_text")["batch_id"])
    assert batch.key is not None
    assert "/common.ai/" in batch.key
    assert batch.origin is not None
    assert (batch.origin.dag_id, batch.origin.task_id, batch.origin.run_id) == (DAG, "adapter_text", run.run_id)
