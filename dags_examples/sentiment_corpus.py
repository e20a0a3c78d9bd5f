"""Labels a large partitioned corpus and aggregates the labels with SQL.

To use it on your own corpus: name its folder in ``source`` (Parquet, JSONL or CSV; folders such as ``lang=en`` stay
what they are) and its text column in the prompt. The target is a folder with a file for every source file; its
``_manifest.json``, which is the task's result, says which belong. The SQL needs DuckDB where Airflow runs.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("corpus/", type="string", description="A folder below the service's data root"),
        "target": Param("sentiments/", type="string", description="A folder below the service's data root"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def sentiment_corpus():
    label = BatchLLMOperator(
        task_id="label",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="What is the mood of this text?\n\n{text}",
        choices=["positive", "neutral", "negative"],
        overwrite=True,
    )

    @task
    def aggregate(manifest: dict[str, Any]) -> list[dict[str, Any]]:
        import duckdb

        files = [file["uri"] for file in manifest["files"]]
        table = duckdb.sql(
            "SELECT lang, llm_output AS mood, count(*) AS texts, round(avg(llm_confidence), 3) AS confidence "
            "FROM read_parquet(?, hive_partitioning = true) GROUP BY ALL ORDER BY ALL",
            params=[files],
        )
        return table.to_arrow_table().to_pylist()

    aggregate(label.output)


sentiment_corpus()
