"""A batch that takes long enough to be watched."""

from __future__ import annotations

from airflow.sdk import Asset, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


@dag(schedule=None)
def long_batch() -> None:
    classify = BatchLLMOperator(
        task_id="classify",
        source="packages.parquet",
        target="long.parquet",
        model="tiny",
        prompt="Describe this package for {day}: {description}",
        constants={"day": "{{ run_id }}"},
        max_tokens=64,
        inline_wait=0,
        poll_interval=0.5,
        outlets=[Asset(name="labels", uri="file:///labels")],
    )

    @task
    def count_rows(manifest: dict) -> int:
        import pyarrow.parquet as pq

        return pq.read_table(manifest["files"][0]["uri"]).num_rows

    count_rows(classify.output)


long_batch()
