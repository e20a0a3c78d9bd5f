"""What a task leaves of its batch in Airflow's task state store, where there is one (Airflow 3.3 and later).

People read it in the task's tab of that name. For a retry on a server of others it is a short way to its batch, which
may not be among the newest that the server lists any more. Nothing depends on it: a batch has its key.
"""

from __future__ import annotations

from typing import Any, Final

from airflow.sdk import Context

from airflow_batch_llm.hooks.waiting import Log
from airflow_batch_llm.wire import Batch

NAME: Final = "batch_llm"
"""The key in the store. What stands there has ``batch_id``, ``key`` and ``url``, all texts."""


def leave(context: Context, batch: Batch, *, key: str, url: str | None, log: Log) -> None:
    """Notes which batch the task has now."""
    store = context.get("task_state_store")
    if store is None:
        return
    try:
        store.set(NAME, {"batch_id": batch.id, "key": key, "url": url or ""})
    except Exception as error:  # noqa: BLE001 (whatever it is, the batch is found without)
        log.info("The task state store does not take the batch: %s", error)


def left(context: Context, *, key: str, log: Log) -> str | None:
    """The id of the batch that an earlier try of the task left under the same key."""
    store = context.get("task_state_store")
    if store is None:
        return None
    try:
        found = store.get(NAME)
    except Exception as error:  # noqa: BLE001 (whatever it is, the batch is found without)
        log.info("The task state store cannot be read: %s", error)
        return None
    noted: dict[str, Any] = found if isinstance(found, dict) else {}
    batch_id = noted.get("batch_id")
    return batch_id if noted.get("key") == key and isinstance(batch_id, str) else None
