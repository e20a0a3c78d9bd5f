"""Labels each day's full export of a table, and pays only for what is new since yesterday.

To use it on your own table: have your export write ``ds=2026-01-31/`` folders below ``source``. Rows whose prompt is
the same as one that was answered before get that answer, whatever else changed in them; ``rows_reused`` says how many.
A backfill over the past works the same way. The answers are kept for 30 days (``batch-llm serve --reuse-days``).
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import Param, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


@dag(
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    tags=["batch-llm", "example"],
    params={
        "source": Param("exports", type="string", description="A folder below the service's data root"),
        "target": Param("labels", type="string", description="A folder below the service's data root"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def incremental_daily():
    label = BatchLLMOperator(
        task_id="label",
        source="{{ params.source }}/ds={{ ds }}/",
        target="{{ params.target }}/ds={{ ds }}/",
        model="{{ params.model }}",
        prompt="What is this package for, in a few words?\n\n{package}: {summary}",
        max_tokens=24,
        retries=2,
    )

    @task
    def report(manifest: dict[str, Any]) -> dict[str, int]:
        counts = {"rows": manifest["rows"], "reused": manifest["rows_reused"], "tokens": manifest["prompt_tokens"]}
        print(f"{counts['reused']:,} of {counts['rows']:,} rows were known")  # noqa: T201 (into the task's log)
        return counts

    report(label.output)


incremental_daily()
