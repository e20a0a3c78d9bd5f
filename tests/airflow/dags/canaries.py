"""A look at the first rows before the others are asked: one that passes, and one that does not."""

from __future__ import annotations

from typing import Any

from airflow.sdk import dag

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

ROWS = 6


def _answered(rows: list[dict[str, Any]]) -> bool:
    return [(row["row"], row["llm_status"]) for row in rows] == [(0, "success"), (1, "success")]


def _refused(rows: list[dict[str, Any]]) -> bool:
    return False


@dag(schedule=None)
def canaries() -> None:
    for task_id, check in {"passes": _answered, "stops": _refused}.items():
        BatchLLMOperator(
            task_id=task_id,
            source=[{"text": f"{task_id} {row}"} for row in range(ROWS)],
            target=f"canary-{task_id}.parquet",
            model="tiny",
            prompt="{text}?",
            max_tokens=4,
            canary_rows=2,
            canary_check=check,
            inline_wait=0,
        )


canaries()
