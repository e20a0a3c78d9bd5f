"""The Airflow plugin: registers the link to a task's batch."""

from __future__ import annotations

from airflow_batch_llm.hooks.airflow_names import AirflowPlugin
from airflow_batch_llm.links.batch_llm import BatchLLMLink


class BatchLLMPlugin(AirflowPlugin):
    """What this package adds to Airflow beside its provider."""

    name = "batch_llm"
    operator_extra_links = [BatchLLMLink()]  # noqa: RUF012 (Airflow's own field)
