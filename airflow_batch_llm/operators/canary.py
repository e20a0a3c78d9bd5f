"""The gate behind the first rows of a batch: judged on the worker, before the other rows are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.hooks.failures import why_failed
from airflow_batch_llm.models import FAILED, PauseReason, RowStatus
from airflow_batch_llm.operators.error_budget import SAMPLES, ErrorBudget
from airflow_batch_llm.wire import Batch, ResultRow

Check = Callable[[list[dict[str, Any]]], Any]


def at_gate(batch: Batch) -> bool:
    """Whether the batch waits for the verdict on its first rows."""
    return batch.paused == PauseReason.CANARY


@dataclass(frozen=True)
class CanaryGate:
    """What the first ``rows`` rows of a batch must pass: the limits of ``budget`` (as shares of these rows), then
    ``check``. Holds their results in memory, and no others."""

    rows: int
    budget: ErrorBudget
    check: Check | None = None

    def against(self, batch: Batch, client: BatchClient) -> str | None:
        """What speaks against asking the other rows, in full sentences; None where nothing does.

        Of a batch that runs, rows that equal another one are not among the results: the one they equal stands for all.
        """
        found = sorted(self._results(batch, client), key=lambda row: row.row)
        counts = Counter(row.status for row in found)
        failed = sum(counts[status] for status in FAILED)
        breach = self.budget.breach(failed, counts[RowStatus.INVALID_OUTPUT], len(found))
        if breach is not None:
            samples = [f"Row {row.row}: {why_failed(row)}" for row in found if row.status in breach.statuses]
            return self._said(batch, breach.in_words(), *samples[:SAMPLES])
        return self._checked(batch, found, counts)

    def _results(self, batch: Batch, client: BatchClient) -> Iterator[ResultRow]:
        if batch.status.ended:  # in source order then
            return islice(client.result_rows(batch.id, limit=self.rows), self.rows)
        return (row for row in client.result_rows(batch.id) if row.row < self.rows)

    def _checked(self, batch: Batch, found: list[ResultRow], counts: Mapping[RowStatus, int]) -> str | None:
        if self.check is None:
            return None
        of_schema = set(((batch.dataset and batch.dataset.output_schema) or {}).get("properties", ()))
        rows = [_shown(row, of_schema) for row in found]
        listed = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
        try:
            passed = self.check(rows)
        except Exception as error:  # noqa: BLE001 (whatever it is, nobody has said that the rest may be spent)
            return self._said(batch, f"canary_check raised {type(error).__name__} on {listed}: {error}")
        return None if passed is not False else self._said(batch, f"canary_check returned False on {listed}")

    def _said(self, batch: Batch, what: str, *samples: str) -> str:
        first = f"The first {self.rows:,} rows of batch {batch.id}, its canary, did not pass"
        return " ".join([f"{first}: {what if what.endswith('.') else f'{what}.'}", *samples])


def _shown(row: ResultRow, of_schema: set[str]) -> dict[str, Any]:
    """A row as the check gets it: its number and the columns that the batch adds."""
    columns = row.columns or {}
    return {"row": row.row} | {
        name: value for name, value in columns.items() if name.startswith("llm_") or name in of_schema
    }
