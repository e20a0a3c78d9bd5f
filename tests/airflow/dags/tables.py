"""Tables whose rows come from Python, from a database and from a function; an estimate; typed answers."""

from __future__ import annotations

from typing import Any, Literal

from airflow.sdk import Asset, dag, task
from pydantic import BaseModel

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.sql_source import SQLSource

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "{text}?", "max_tokens": 4, "overwrite": True, "poll_interval": 0.5}


class Label(BaseModel):
    topic: Literal["price", "quality"]
    urgent: bool


@dag(schedule=None)
def tables() -> None:
    BatchLLMOperator(
        task_id="inline",
        source=[{"text": "{{ no_template }}", "number": 1}, {"text": "{x}", "number": None}],
        target="inline.jsonl",
        **ASKED,
    )
    BatchLLMOperator(
        task_id="query",
        source=SQLSource(
            "warehouse",
            "select id, text from reviews where id < {{ dag_run.conf['most'] }} order by id desc",
            rows_per_file=3,
        ),
        target="query.parquet",
        **ASKED,
    )

    @task
    def words() -> list[str]:
        return ["good", "bad {{ word }}"]

    @task.batch_llm(target="decorated.parquet", inline_wait=0, **ASKED)
    def decorated(words: list[str]) -> list[dict[str, Any]]:
        return [{"text": word} for word in words]

    decorated(words())


@dag(schedule=None)
def estimate() -> None:
    BatchLLMOperator(
        task_id="estimate",
        source="packages.parquet",
        model="tiny",
        prompt="{description}",
        dry_run=True,
        poll_interval=0.5,
        outlets=[Asset(name="never_written", uri="file:///never_written")],
    )


@dag(schedule=None)
def typed() -> None:
    BatchLLMOperator(
        task_id="typed",
        source=[{"text": f"review {number}"} for number in range(3)],
        target="typed.parquet",
        output_type=Label,
        **{**ASKED, "max_tokens": 200},
    )


tables()
estimate()
typed()
"""Each Dag is of its own, so that one that fails says what."""
