"""What a sensor waits for: one batch, the batch under a key, or all batches of a Dag run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.client.standing import standing
from airflow_batch_llm.client.texts import rows_so_far, why_it_ended
from airflow_batch_llm.hooks.airflow_names import AirflowException, AirflowFailException
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch

MOST_NAMED: Final = 3
"""How many batches of a run that ended badly are told of in the task's error."""


@dataclass(frozen=True)
class Awaited:
    """One of the three: the batch ``batch_id``, the newest generation under ``key``, or the batches of ``group``."""

    batch_id: str | None = None
    key: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        if self.batch_id is not None:
            return f"batch {self.batch_id}"
        return f"the batch under the key {self.key}" if self.key is not None else f"the batches of {self.group}"

    def look(self, client: BatchClient) -> list[Batch]:
        """The batches as they stand; of a group the newest of each series. None where there is none (yet)."""
        if self.batch_id is not None:
            return [client.get(self.batch_id)]
        return [_watched(batch, client) for batch in self._listed(client)]

    def _listed(self, client: BatchClient) -> list[Batch]:
        if self.key is not None:
            found = client.find(self.key)
            return [] if found is None else [found]
        return standing(client.of_group(self.group or ""))

    def check(self, batches: list[Batch]) -> None:
        """Raises unless all batches, which have ended, completed.

        AirflowFailException for a batch by its id, which stays as it is; AirflowException for the others, since a retry
        may find newer ones.
        """
        wrong = [batch for batch in batches if batch.status != BatchStatus.COMPLETED]
        if not wrong:
            return
        named = " ".join(why_it_ended(batch) for batch in wrong[:MOST_NAMED])
        if self.batch_id is not None:
            raise AirflowFailException(named)
        if self.key is not None:
            raise AirflowException(f"{named} A retry looks for a newer generation.")
        raise AirflowException(f"{len(wrong)} of {self} ({len(batches)}) did not complete. {named}")


def _watched(batch: Batch, client: BatchClient) -> Batch:
    """The batch, looked at by itself where it is paused unless somebody does: to the service a list is no look."""
    return batch if batch.pause_unwatched_after is None or batch.status.ended else client.get(batch.id)


def summary(batch: Batch) -> dict[str, Any]:
    """What the result of a sensor on a run says of each batch, in JSON types."""
    total, _, failed = rows_so_far(batch)
    return {
        "batch_id": batch.id,
        "manifest": batch.manifest.uri if batch.manifest else None,
        "rows": total,
        "rows_failed": failed,
    }
