"""What a batch must pass for its task to succeed: the verdict on its first rows, and the limits on failed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import ConflictError
from airflow_batch_llm.hooks.airflow_names import AirflowException, AirflowFailException
from airflow_batch_llm.hooks.waiting import Log
from airflow_batch_llm.models import CanaryState, PauseReason
from airflow_batch_llm.operators.canary import CanaryGate
from airflow_batch_llm.operators.error_budget import ErrorBudget, broken_budget
from airflow_batch_llm.operators.held_batch import HeldBatch
from airflow_batch_llm.wire import Batch


@dataclass(frozen=True)
class Gates:
    """A task's limits. One without a ``canary`` lets a batch go on that waits for the verdict on its first rows.

    ``connect`` gives a client, which is closed again.
    """

    budget: ErrorBudget
    canary: CanaryGate | None
    connect: Callable[[], BatchClient]
    log: Log

    def judge_first_rows(self, batch: Batch, held: HeldBatch) -> Batch:
        """The batch, going on since its first rows have passed. Raises AirflowException, with the batch cancelled, if
        they have not."""
        with self.connect() as client:
            against = self.canary.against(batch, client) if self.canary else None
            if against is None:
                self.log.info("The first rows of batch %s have passed, so the others follow", batch.id)
                try:
                    return client.resume(batch.id, reason=PauseReason.CANARY)
                except ConflictError:  # somebody has ended it meanwhile
                    return client.get(batch.id)
        raise AirflowException(f"{against} The other rows were not asked. {held.cancel()}")

    def judge_end(self, batch: Batch) -> None:
        """Raises AirflowException for a batch with too many failed rows, or (if it had no others to hold back) whose
        first rows do not pass; AirflowFailException where a retry cannot ask for the failed ones alone."""
        self._check_budget(batch)
        self._check_canary(batch)

    def _check_budget(self, batch: Batch) -> None:
        if breach := self.budget.broken_by(batch):
            repeats = batch.team is not None  # only a service with its extensions says so
            with self.connect() as client:
                message = broken_budget(batch, breach, client, repeats=repeats)
            raise AirflowException(message) if repeats else AirflowFailException(message)

    def _check_canary(self, batch: Batch) -> None:
        if self.canary is None or batch.canary == CanaryState.PASSED:
            return
        with self.connect() as client:
            against = self.canary.against(batch, client)
        if against is not None:
            raise AirflowException(f"{against} All other rows are done too: there was nothing to hold back.")
