"""The link to a task's batch."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink


class BatchLLMLink(BaseOperatorLink):
    """Opens the batch at the service. Works as soon as the batch is submitted, also while the task is deferred."""

    @property
    def name(self) -> str:
        return "Batch"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL that the operator found; Airflow asks on the worker, after each time the task ran there."""
        return getattr(operator, "batch_url", None) or ""
