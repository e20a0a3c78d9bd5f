"""Adds typed columns to a table of products: what a shop's search and filters need, from a name and a text.

To use it on your own catalogue: name your table in ``source``, its columns in the prompt, and the columns that you want
in ``Product``. Each field of it becomes a column of that type; an answer that does not fit keeps its raw text and says
why in ``llm_error``.
"""

from __future__ import annotations

from typing import Any, Literal

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


class Product(BaseModel):
    audience: Literal["developers", "administrators", "everybody"]
    difficulty: int = Field(ge=1, le=5)
    needs_network: bool
    platforms: list[Literal["desktop", "server", "embedded"]] = Field(max_length=3)


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("packages.parquet", type="string", description="Below the service's data root"),
        "target": Param("catalogue.parquet", type="string", description="Below the service's data root"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def enrich_catalogue():
    enrich = BatchLLMOperator(
        task_id="enrich",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="Describe this product for a catalogue.\n\n{package}: {summary}",
        output_type=Product,
        passthrough=["package", "summary"],
        max_tokens=120,
        overwrite=True,
    )

    @task
    def count_audiences(manifest: dict[str, Any]) -> dict[str, int]:
        import pyarrow.parquet as pq

        counted = pq.read_table(manifest["files"][0]["uri"], columns=["audience"])["audience"].value_counts()
        return {str(entry["values"]): entry["counts"] for entry in counted.to_pylist()}

    count_audiences(enrich.output)


enrich_catalogue()
