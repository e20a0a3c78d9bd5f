"""Asks an LLM of which kind each Debian package is, then counts the labels.

To use it on your own data: put a Parquet, JSONL or CSV file below the service's data root, name it in ``source`` and a
model that your workers serve in ``model``, write a prompt that names columns of your file in braces, and list the
answers that you want in ``choices``. The Airflow connection ``batch_llm_default`` says where the service is.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

KINDS = [
    "library",
    "language",
    "development",
    "documentation",
    "system",
    "network",
    "science",
    "games",
    "media",
    "desktop",
]


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("packages.parquet", type="string", description="Below the service's data root"),
        "target": Param("labels.parquet", type="string", description="Below the service's data root"),
        "model": Param("sections", type="string", description="One that a worker serves"),
    },
)
def classify_packages():
    classify = BatchLLMOperator(
        task_id="classify",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        prompt="Which kind of package is this?\n\n{package}: {summary}",
        choices=KINDS,
        overwrite=True,
        retries=2,
        inline_wait=1,  # so that even the short batch of the sample is seen to defer; leave it out for your own
    )

    @task
    def count_labels(manifest: dict[str, Any]) -> dict[str, int]:
        import pyarrow.parquet as pq

        counts: dict[str, int] = {}
        for file in manifest["files"]:
            labels = pq.read_table(file["uri"], columns=["llm_output"])["llm_output"]
            for label in labels.to_pylist():
                counts[str(label)] = counts.get(str(label), 0) + 1
        for label, count in sorted(counts.items(), key=lambda entry: -entry[1]):
            print(f"{count:6,} {label}")  # noqa: T201 (into the task's log)
        return counts

    count_labels(classify.output)


classify_packages()
