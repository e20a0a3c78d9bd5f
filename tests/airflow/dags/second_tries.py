"""Tasks that run more than once: after too many failed rows, and after they were cleared."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "{text}?", "max_tokens": 8, "poll_interval": 0.5}


@dag(schedule=None)
def error_budget() -> None:
    BatchLLMOperator(
        task_id="answer",
        source=[{"text": "far too long " * 2000 if row == 3 else f"review {row}"} for row in range(6)],
        target="budget.parquet",
        temperature=1.0,  # so that a row that was asked twice would have two answers
        max_errors=0,
        retries=1,
        retry_delay=timedelta(seconds=8),
        **ASKED,
    )


@dag(schedule=None)
def cleared() -> None:
    for on_clear in ("rerun", "reuse"):
        BatchLLMOperator(
            task_id=on_clear,
            source=[{"text": f"{on_clear} {row}"} for row in range(4)],
            target=f"cleared-{on_clear}.parquet",
            on_clear=on_clear,
            **ASKED,
        )


error_budget()
cleared()
