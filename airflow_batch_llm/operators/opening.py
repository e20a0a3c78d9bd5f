"""How a try of a task comes to its batch: it goes on with what an earlier try left, or submits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.operators.error_budget import ErrorBudget
from airflow_batch_llm.operators.noted import Note
from airflow_batch_llm.operators.server import Server
from airflow_batch_llm.operators.sources import Log, Place
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec

_ENDED_EARLY = frozenset({BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED, BatchStatus.CANCELLING})


@dataclass(frozen=True)
class Opening:
    """One try's way to its batch under ``key``.

    ``create`` makes the submit over a place (None for a request file), ``place`` finds out the place, which may mean to
    run a query and to upload its result. ``source`` is a hash of what the Dag says of that place (None: unknown).
    """

    server: Server
    key: str
    create: Callable[[Place | None], BatchCreate]
    place: Callable[[], Place | None]
    source: str | None
    budget: ErrorBudget
    log: Log

    def batch(self, *, found_first: bool) -> Batch:
        """The batch of an earlier try, or a new one; one with too many failed rows in a new generation.

        With ``found_first`` an earlier try's batch is looked for before the place is found out, and taken with its own
        source, unless the Dag says another one by now.
        """
        found = self.server.find(self.key) if found_first else None
        fits = found is not None and found.dataset is not None and not self._changed(found)
        batch = self._taken_up(found) if found is not None and fits else self._submitted()
        breach = self.budget.broken_by(batch)
        if breach is None or not self.server.extensions:
            return batch
        # Only an earlier try's batch can have completed by now.
        again = self.server.client.retry(batch.id)
        self.log.info("%s: batch %s asks for the failed ones again", breach.of(batch), again.id)
        # A retry repeats what is asked, but not that it pauses while nobody watches: a submit that finds it says so.
        return again if again.pause_unwatched_after == batch.pause_unwatched_after else self._taken_up(again)

    def _changed(self, found: Batch) -> bool:
        noted = Note.of(found).source
        return noted is not None and self.source is not None and noted != self.source

    def _submitted(self) -> Batch:
        return self.server.submit(self.create(self.place()), self.key)

    def _taken_up(self, found: Batch) -> Batch:
        """The batch under the key with its own source: it lives, or completed, or goes on from what was done. One that
        asks something else gives way."""
        try:
            return self._found_again(found)
        except NotFoundError as error:
            if self._asks_otherwise(found):
                self.log.info("The source of batch %s is gone (%s), and it asked something else", found.id, error)
                return self._submitted()
            if found.status in _ENDED_EARLY:
                self.log.info("The source of batch %s is gone (%s), so it is made anew", found.id, error)
                return self._submitted()
            self.log.info("The source of batch %s is gone (%s); the batch needs it no more", found.id, error)
            return found

    def _found_again(self, found: Batch) -> Batch:
        return self.server.submit(self.create(found.dataset.source if found.dataset else None), self.key)

    def _asks_otherwise(self, found: Batch) -> bool:
        """Whether the task asks something else of the same source by now than ``found`` does."""
        assert found.dataset is not None  # noqa: S101 (the caller looked)
        now = self.create(found.dataset.source)
        return now.model != found.model or now.dataset is None or _asked(now.dataset) != _asked(found.dataset)


def _asked(dataset: DatasetSpec) -> dict[str, Any]:
    """What decides the results, in JSON types."""
    return dataset.model_dump(mode="json", exclude={"overwrite"}, exclude_defaults=True)
