"""What a mapped task's ``map_index_template`` may say of its batch."""

from __future__ import annotations

from airflow.sdk import Context

from airflow_batch_llm.client.texts import rows_so_far
from airflow_batch_llm.wire import Batch


def label(context: Context, batch: Batch) -> None:
    """Lets the template know ``batch_id``, ``rows`` and ``rows_failed``. Airflow renders it when the task ends."""
    total, _, failed = rows_so_far(batch)
    context.update({"batch_id": batch.id, "rows": total, "rows_failed": failed})  # type: ignore[misc]
