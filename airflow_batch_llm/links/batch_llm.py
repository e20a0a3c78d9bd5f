"""The link to a task's batch."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

from airflow_batch_llm.hooks.page_address import batch_page


class BatchLLMLink(BaseOperatorLink):
    """Opens the batch's page in Airflow. Works as soon as it is submitted, also while the task is deferred."""

    @property
    def name(self) -> str:
        return "Batch"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Of the batch that the task has; Airflow asks on the worker, after each time the task ran there."""
        batch_id = getattr(operator, "linked_batch", None)
        return batch_page(batch_id, operator.conn_id) if batch_id else ""
