"""Writes several new examples for each row of a table of seeds, and keeps each different one once.

To use it on your own seeds: name your table in ``source`` and its columns in the prompt. ``n`` is how many samples each
seed gets; with a ``seed`` a second run gives the same ones (and costs nothing, since they are known).
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("packages.parquet", type="string", description="Below the service's data root"),
        "target": Param("samples.parquet", type="string", description="Below the service's data root"),
        "examples": Param("/data/examples.parquet", type="string", description="Where Airflow's workers write it"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def synthesize_examples():
    sample = BatchLLMOperator(
        task_id="sample",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="Write one question that a user of this program might ask.\n\n{package}: {summary}",
        n=4,
        temperature=0.9,
        seed=42,
        max_tokens=40,
        passthrough=["package"],
        overwrite=True,
    )

    @task
    def keep_different(manifest: dict[str, Any], examples: str) -> dict[str, int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept: dict[str, str] = {}
        samples = 0
        for row in pq.read_table(manifest["files"][0]["uri"]).to_pylist():
            for text in row["llm_output"] or []:
                samples += 1
                kept.setdefault(text.strip(), row["package"])
        pq.write_table(pa.table({"package": list(kept.values()), "question": list(kept)}), examples)
        return {"samples": samples, "kept": len(kept)}

    keep_different(sample.output, "{{ params.examples }}")


synthesize_examples()
