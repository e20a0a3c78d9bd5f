"""The end that a task puts to its own batch."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.address import ServiceAddress


@dataclass(frozen=True)
class HeldBatch:
    """A batch that this try may cancel. Complete in itself, because a signal handler must not ask Airflow anything."""

    address: ServiceAddress
    batch_id: str
    holder: str | None
    """None on a server that knows no holders: there a cancel always counts."""

    def cancel(self) -> str:
        """Cancels the batch unless a later try holds it, and says in a sentence what came of it. Never raises."""
        try:
            # A client of its own: the one that was interrupted may hold its connection's lock.
            with self.address.client() as client:
                batch = client.cancel(self.batch_id, holder=self.holder)
        except BatchLLMError as error:
            return f"Batch {self.batch_id} was not cancelled: {error}"
        retry = "a retry goes on from there" if self.holder else "a retry submits it anew"
        return f"Batch {batch.id} is {batch.status.value}; what was done is kept, and {retry}."
