"""Asks a panel of invented people the questions of a survey: a cheap dry run before you ask real ones.

To use it for your own survey: change ``PERSONAS``, ``QUESTIONS`` and the answers. Each person answers each question,
so a hundred of both are ten thousand rows; persons come first in the prompt, and the pool asks rows with a common
beginning one after the other, so that the engine computes it once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from airflow.sdk import Param, dag, task

PERSONAS = [
    {"name": "Ada", "about": "a retired engineer who distrusts subscriptions"},
    {"name": "Ben", "about": "a student who shares a flat and a small budget"},
    {"name": "Chi", "about": "a nurse on night shifts with two children"},
]
QUESTIONS = [
    "Would you pay for news online?",
    "Would you let a car drive you?",
    "Would you work four long days instead of five short ones?",
]
ANSWERS = ["yes", "rather yes", "rather no", "no"]


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "target": Param("survey.parquet", type="string", description="Below the service's data root"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def simulate_survey():
    @task.batch_llm(
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="You are {name}, {about}. Answer the question of a survey as that person would.\n\n{question}",
        choices=ANSWERS,
        overwrite=True,
    )
    def ask() -> list[dict[str, Any]]:
        return [{**persona, "question": question} for persona in PERSONAS for question in QUESTIONS]

    @task
    def count_answers(manifest: dict[str, Any]) -> dict[str, dict[str, int]]:
        import pyarrow.parquet as pq

        counts: dict[str, Counter[str]] = {question: Counter() for question in QUESTIONS}
        for row in pq.read_table(manifest["files"][0]["uri"]).to_pylist():
            counts[row["question"]][row["llm_output"]] += 1
        return {question: dict(count) for question, count in counts.items()}

    count_answers(ask())


simulate_survey()
