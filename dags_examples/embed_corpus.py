"""Turns a column of texts into a column of vectors, and shows that the nearest texts are alike.

To use it on your own texts: name your table in ``source``, its text column in the prompt, and a model that a worker
serves for embeddings (``batch-llm work --engine-args "--runner pooling"``). ``llm_embedding`` is a list of 32-bit
floats, ready for a vector index. The check needs numpy where Airflow runs.
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
        "target": Param("vectors.parquet", type="string", description="Below the service's data root"),
        "model": Param("Qwen/Qwen3-Embedding-0.6B", type="string", description="One that a worker serves"),
    },
)
def embed_corpus():
    embed = BatchLLMOperator(
        task_id="embed",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        endpoint="/v1/embeddings",
        prompt="{summary}",
        passthrough=["package", "summary"],
        overwrite=True,
    )

    @task
    def nearest(manifest: dict[str, Any]) -> list[dict[str, Any]]:
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(manifest["files"][0]["uri"])
        vectors = np.stack(table["llm_embedding"].to_numpy())
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        summaries = table["summary"].to_pylist()
        found = []
        for row in range(min(5, len(summaries))):
            likeness = vectors @ vectors[row]
            likeness[row] = -1
            best = int(likeness.argmax())
            found.append({"text": summaries[row], "nearest": summaries[best], "likeness": float(likeness[best])})
        return found

    nearest(embed.output)


embed_corpus()
