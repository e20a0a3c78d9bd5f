"""Unmodified operators of Airflow's providers on a service of ours, and our own with the same request file."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from airflow.providers.common.ai.operators.llm_batch import LLMBatchOperator
from airflow.providers.openai.operators.openai import OpenAITriggerBatchOperator
from airflow.sdk import dag, task
from pydantic import BaseModel

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

PROMPTS = [f"What is number {number}?" for number in range(12)]


class Label(BaseModel):
    topic: Literal["price", "quality", "delivery"]
    urgent: bool


def ways(name: str, max_tokens: int) -> dict[str, Any]:
    return {
        "result_path": "{{ dag_run.conf['results'] }}/" + name,
        "max_tokens": max_tokens,
        "poll_interval": 30,
        "deferrable": True,
    }


# Airflow 3.3 fails a task whose deferral was so short that the scheduler had not seen it yet (apache/airflow#66374).
@dag(schedule=None, default_args={"retries": 2, "retry_delay": timedelta(seconds=1)})
def foreign_operators() -> None:
    for name, conn_id, model_id in (
        ("openai", "pydanticai_default", "openai:tiny"),
        ("adapter", "batch_llm_default", "batch_llm:tiny"),
    ):
        asked = {"llm_conn_id": conn_id, "model_id": model_id}
        LLMBatchOperator(task_id=f"{name}_text", requests=list(PROMPTS), **asked, **ways(f"{name}_text", max_tokens=8))

        @task.llm_batch(task_id=f"{name}_label", output_type=Label, **asked, **ways(f"{name}_label", max_tokens=200))
        def label() -> list[str]:
            return list(PROMPTS)

        label()

    OpenAITriggerBatchOperator(
        task_id="trigger",
        file_id="{{ dag_run.conf['file_id'] }}",
        endpoint="/v1/chat/completions",
        deferrable=True,
        poll_interval=1,
    )
    BatchLLMOperator(task_id="own", input_file_id="{{ dag_run.conf['file_id'] }}", inline_wait=0, poll_interval=1)


foreign_operators()
