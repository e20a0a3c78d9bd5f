"""Submitting and finding a task's batch: by its key on our service, through metadata on servers of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.client import plain_server
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.hooks.airflow_names import AirflowFailException
from airflow_batch_llm.operators.submission import TaskBatchNames
from airflow_batch_llm.wire import Batch, BatchCreate


@dataclass(frozen=True)
class Server:
    """One server and whether it has our extensions: tables, keys, holders, priorities."""

    client: BatchClient
    extensions: bool
    known: str | None = None
    """The id of the batch that an earlier try had, as it left it: only a server without keys needs it."""

    def submit(self, create: BatchCreate, key: str) -> Batch:
        """The batch under ``key``: the one that lives or completed, or else a new one."""
        if self.extensions:
            return self.client.submit(create)
        return plain_server.submit_once(self.client, create, key, known=self.known)

    def present(self, names: TaskBatchNames) -> TaskBatchNames:
        """The names of the task's present life: see :meth:`TaskBatchNames.in_present_life`."""
        return names.in_present_life(self.client.find) if self.extensions else names

    def find(self, key: str) -> Batch | None:
        return self.client.find(key) if self.extensions else plain_server.find(self.client, key, known=self.known)

    def check(self, *, table: bool, priority: Any, deadline: Any, pause_unwatched_after: Any) -> None:
        """Raises AirflowFailException where a batch needs what the server does not have."""
        if self.extensions:
            return
        only = f"The server at {self.client.url} has OpenAI's batch API only"
        unless = (
            "Nothing was submitted. If it is `batch-llm serve` behind a proxy that hides /healthz, say "
            '{"extensions": true} in the extra of the connection.'
        )
        if table:
            raise AirflowFailException(
                f"{only}, and this task's source is a table: tables need `batch-llm serve`. Upload a file of "
                f"requests there, and give its id as input_file_id instead of source. {unless}"
            )
        if priority:
            raise AirflowFailException(
                f"{only}, which knows no priority; this task has priority={priority}. Leave it out. {unless}"
            )
        if pause_unwatched_after is not None:
            raise AirflowFailException(
                f"{only}, which pauses nothing; this task has pause_unwatched_after={pause_unwatched_after}. "
                f"Leave it out. {unless}"
            )
        if deadline is not None:
            raise AirflowFailException(
                f"{only}, which knows no deadline; this task has deadline={deadline}. Give a completion_window "
                f"instead. {unless}"
            )
