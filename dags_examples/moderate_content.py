"""Flags texts that a moderator should see, puts a copy of them aside, and fails if too many could not be judged.

To use it on your own texts: name your table in ``source`` and its text column in the prompt, and change the flags.
Above ``max_error_rate`` the task fails with the counts and three examples; the target is there all the same, and a
retry asks for the failed rows alone.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task
from pydantic import BaseModel

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator


class Flags(BaseModel):
    insult: bool
    advertising: bool
    personal_data: bool


@dag(
    schedule=None,
    tags=["batch-llm", "example"],
    params={
        "source": Param("packages.parquet", type="string", description="Below the service's data root"),
        "target": Param("moderated.parquet", type="string", description="Below the service's data root"),
        "quarantine": Param("/data/quarantine.parquet", type="string", description="Where Airflow's workers write it"),
        "model": Param("Qwen/Qwen3-8B", type="string", description="One that a worker serves"),
    },
)
def moderate_content():
    moderate = BatchLLMOperator(
        task_id="moderate",
        source="{{ params.source }}",
        target="{{ params.target }}",
        model="{{ params.model }}",
        system_prompt="You moderate a public forum. Answer with what is true of the text.",
        prompt="{summary}",
        output_type=Flags,
        max_tokens=60,
        max_error_rate=0.05,
        overwrite=True,
        retries=1,
    )

    @task
    def set_aside(manifest: dict[str, Any], quarantine: str) -> int:
        """The rows that are flagged or could not be judged, as a copy: the target keeps all of them."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = pq.read_table(manifest["files"][0]["uri"])
        flagged = pc.invert(pc.equal(table["llm_status"], "success"))
        for name in Flags.model_fields:
            flagged = pc.or_(flagged, pc.fill_null(table[name], True))
        pq.write_table(table.filter(flagged), quarantine)
        return int(pc.sum(flagged).as_py() or 0)

    set_aside(moderate.output, "{{ params.quarantine }}")


moderate_content()
