"""Has two models answer the same table, a third judge them row by row, and makes a table of metrics and a plot.

To compare your own models: name them in ``models`` and the judge in ``judge``, put your table in ``source`` with the
right answers in a column, and change the prompts. The plot needs matplotlib where Airflow runs.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

SECTIONS = ["libs", "python", "doc", "games", "net", "other"]


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("packages.parquet", type="string", description="Below the service's data root"),
        "models": Param(["Qwen/Qwen3-8B", "Qwen/Qwen3-4B"], type="array", description="Two that workers serve"),
        "judge": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
        "plot": Param("/data/models.png", type="string", description="Where Airflow's workers write it"),
    },
)
def evaluate_models():
    answers = [
        BatchLLMOperator(
            task_id=f"answer_{name}",
            source="{{ params.source }}",
            target=f"evaluation/{name}.parquet",
            model=f"{{{{ params.models[{number}] }}}}",
            prompt="Which section of Debian does this package belong to?\n\n{package}: {summary}",
            choices=SECTIONS,
            passthrough=["package", "summary", "section"],
            overwrite=True,
        )
        for number, name in enumerate("ab")
    ]

    @task.batch_llm(
        target="evaluation/judged.parquet",
        model="{{ params.judge }}",
        prompt="Which answer fits this package better?\n\n{package}: {summary}\n\nA: {a}\nB: {b}",
        choices=["A", "B", "both"],
        overwrite=True,
    )
    def judge(of_a: dict[str, Any], of_b: dict[str, Any]) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        first, second = (pq.read_table(manifest["files"][0]["uri"]).to_pylist() for manifest in (of_a, of_b))
        return [
            {name: one[name] for name in ("package", "summary", "section")}
            | {"a": one["llm_output"], "b": two["llm_output"]}
            for one, two in zip(first, second, strict=True)
        ]

    @task
    def measure(judged: dict[str, Any], plot: str) -> dict[str, float]:
        import matplotlib
        import pyarrow.parquet as pq

        matplotlib.use("Agg")
        from matplotlib import pyplot

        rows = pq.read_table(judged["files"][0]["uri"]).to_pylist()
        metrics = {f"right_{name}": sum(row[name] == row["section"] for row in rows) / len(rows) for name in "ab"}
        metrics |= {
            f"preferred_{name}": sum(row["llm_output"] == name for row in rows) / len(rows) for name in ("A", "B")
        }
        figure, axes = pyplot.subplots()
        axes.bar(list(metrics), list(metrics.values()))
        axes.set_ylabel(f"share of {len(rows)} rows")
        figure.savefig(plot)
        return metrics

    measure(judge(answers[0].output, answers[1].output), "{{ params.plot }}")


evaluate_models()
