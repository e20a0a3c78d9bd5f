"""A batch that is watched while it runs, and batches that sensors wait for."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, dag

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "{text}?", "max_tokens": 8, "overwrite": True, "poll_interval": 0.5}


@dag(schedule=None)
def seen() -> None:
    BatchLLMOperator(
        task_id="classify",
        source=[{"text": "far too long " * 2000 if row == 3 else f"review {row}"} for row in range(3000)],
        target="seen.parquet",
        constants={"run": "{{ run_id }}"},
        inline_wait=0,
        outlets=[Asset(name="seen", uri="file:///seen")],
        **{**ASKED, "prompt": "{text} {run}?", "max_tokens": 48},
    )


@dag(schedule=None)
def handed_over() -> None:
    mapped = BatchLLMOperator.partial(
        task_id="classify", wait_for_completion=False, map_index_template="{{ batch_id }}", **ASKED
    ).expand_kwargs([{"source": [{"text": name}], "target": f"handed-{name}.parquet"} for name in ("a", "b")])
    one = BatchLLMSensor.partial(task_id="wait_for_one").expand(batch_id=mapped.output)
    run = BatchLLMSensor(task_id="wait_for_the_run", timeout=90)
    labelled = BatchLLMOperator(
        task_id="labelled", source=[{"text": "c"}], target="labelled.parquet", inline_wait=60, **ASKED
    )
    mapped >> [one, run] >> labelled


seen()
handed_over()
