"""A table that a test labels, row by row, while somebody looks at it."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

REVIEWS = (
    "Cheaper than in the shop round the corner.",
    "The handle broke on the second day.",
    "It came a week late, and wet.",
    "My cat likes the box.",
)


@dag(schedule=None)
def labels() -> None:
    BatchLLMOperator(
        task_id="answer",
        source=[{"id": number, "text": f"{REVIEWS[number % 4]} ({number})"} for number in range(60)],
        target="labels/{{ run_id | replace(':', '-') }}.parquet",
        model="Qwen/Qwen3-8B",
        prompt="What is this review about?\n\n{text} {run}",
        constants={"run": "{{ run_id }}"},
        choices=["price", "quality", "delivery", "other"],
        poll_interval=0.5,
        inline_wait=0.0,
    )


labels()
