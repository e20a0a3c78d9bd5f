"""How many rows of a batch may fail, or have answers that do not fit, before its task fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.failures import why_failed
from airflow_batch_llm.models import FAILED, BatchStatus, RowStatus
from airflow_batch_llm.wire import Batch

SAMPLES: Final = 3


@dataclass(frozen=True)
class Breach:
    """What a batch is above: how many rows of which statuses, and the limit in words."""

    rows: int
    total: int
    what: str
    """What became of the rows."""
    limit: str
    statuses: tuple[RowStatus, ...] = FAILED

    def of(self, batch: Batch) -> str:
        """The breach in words, without a full stop."""
        return self.in_words(f" of batch {batch.id}")

    def in_words(self, of: str = "") -> str:
        """The same, where it was said which rows these are of."""
        share = f"{self.rows / self.total:.1%}"
        return f"{self.rows:,} of {self.total:,} rows{of} {self.what} ({share}), and {self.limit}"


@dataclass(frozen=True)
class ErrorBudget:
    """The most rows that may fail, as a share of all and as a number, and the largest share of them whose answers may
    not fit the choices or the schema. Without any every batch is within it.

    Those answers count among the failed rows as well: the limits are looked at one by one.
    """

    rate: float | None = None
    rows: int | None = None
    invalid_rate: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.rate, self.rows, self.invalid_rate))

    def broken_by(self, batch: Batch) -> Breach | None:
        """What the batch is above; None for one that is within the budget or did not complete."""
        if batch.status != BatchStatus.COMPLETED:
            return None
        counts = batch.request_counts
        invalid = batch.manifest.counts.get(RowStatus.INVALID_OUTPUT, 0) if batch.manifest else 0
        return self.breach(counts.failed, invalid, counts.total)

    def breach(self, failed: int, invalid: int, total: int) -> Breach | None:
        """The limit that so many rows are above, of which the ``invalid`` ones count as failed too."""
        if self.rows is not None and failed > self.rows:
            return Breach(failed, total, "failed", f"max_errors is {self.rows:,}")
        if self.rate is not None and failed > self.rate * total:
            return Breach(failed, total, "failed", f"max_error_rate is {self.rate:g}")
        if self.invalid_rate is not None and invalid > self.invalid_rate * total:
            limit = f"max_invalid_rate is {self.invalid_rate:g}"
            return Breach(invalid, total, "have an answer that does not fit", limit, (RowStatus.INVALID_OUTPUT,))
        return None


def broken_budget(batch: Batch, breach: Breach, client: BatchClient, *, repeats: bool) -> str:
    """What a task says of a batch with too many failed rows: how many, some of them, and where all rows are."""
    sentences = [
        f"{breach.of(batch)}.",
        *_samples(batch, breach.statuses, client),
        _where(batch),
        "A retry asks for the failed rows alone." if repeats else "The server cannot ask for the failed rows alone.",
    ]
    return " ".join(sentences)


def _samples(batch: Batch, statuses: Iterable[RowStatus], client: BatchClient) -> Iterator[str]:
    try:
        found = chain.from_iterable(client.result_rows(batch.id, limit=SAMPLES, status=status) for status in statuses)
        yield from [f"Row {row.row}: {why_failed(row)}" for row in islice(found, SAMPLES)]
    except BatchLLMError as error:
        yield f"The failed rows cannot be read: {error}"


def _where(batch: Batch) -> str:
    if batch.manifest is not None:
        files = batch.manifest.files
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        copies = f", and the failed ones alone in {batch.manifest.quarantine.uri}" if batch.manifest.quarantine else ""
        return f"All rows, those that were answered and those that failed, are in {files[0].uri}{more}{copies}."
    results = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
    return f"The results are in {' and '.join(results)}." if results else "There are no results."
