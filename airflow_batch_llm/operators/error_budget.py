"""How many rows of a batch may fail before its task does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.models import BatchStatus, RowStatus
from airflow_batch_llm.wire import Batch, ResultRow

SAMPLES: Final = 3
LONGEST_SAMPLE: Final = 300


@dataclass(frozen=True)
class ErrorBudget:
    """The most rows that may fail, as a share of all and as a number. Without either every batch is within it."""

    rate: float | None = None
    rows: int | None = None

    def __bool__(self) -> bool:
        return self.rate is not None or self.rows is not None

    def broken_by(self, batch: Batch) -> str | None:
        """What the batch is above, in words; None for one that is within the budget or did not complete."""
        counts = batch.request_counts
        if batch.status != BatchStatus.COMPLETED or not counts.failed:
            return None
        if self.rows is not None and counts.failed > self.rows:
            return f"max_errors is {self.rows:,}"
        if self.rate is not None and counts.failed > self.rate * counts.total:
            return f"max_error_rate is {self.rate:g}"
        return None


def broken_budget(batch: Batch, limit: str, client: BatchClient, *, repeats: bool) -> str:
    """What a task says of a batch with too many failed rows: how many, some of them, and where all rows are."""
    counts = batch.request_counts
    sentences = [
        f"{counts.failed:,} of {counts.total:,} rows of batch {batch.id} failed ({counts.failed / counts.total:.1%}), "
        f"and {limit}.",
        *_samples(batch, client),
        _where(batch),
        "A retry asks for the failed rows alone." if repeats else "The server cannot ask for the failed rows alone.",
    ]
    return " ".join(sentences)


def _samples(batch: Batch, client: BatchClient) -> Iterator[str]:
    statuses = (RowStatus.ERROR, RowStatus.INVALID_OUTPUT)
    try:
        found = chain.from_iterable(client.result_rows(batch.id, limit=SAMPLES, status=status) for status in statuses)
        yield from [f"Row {row.row}: {_why(row)}" for row in islice(found, SAMPLES)]
    except BatchLLMError as error:
        yield f"The failed rows cannot be read: {error}"


def _why(row: ResultRow) -> str:
    """Code and sentence of a failed row."""
    said: Any = (row.columns or {}).get("llm_error")
    if said is None and row.error:
        said = ": ".join(str(row.error[name]) for name in ("code", "message") if row.error.get(name))
    if said is None and row.response:
        said = f"HTTP {row.response.get('status_code')}: {row.response.get('body')}"
    text = " ".join(str(said or "no reason was given").split())
    text = text if len(text) <= LONGEST_SAMPLE else f"{text[:LONGEST_SAMPLE]} …"
    return f"{row.status.value}, {text}{'' if text.endswith(('.', '…')) else '.'}"


def _where(batch: Batch) -> str:
    if batch.manifest is not None:
        files = batch.manifest.files
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        return f"All rows, those that were answered and those that failed, are in {files[0].uri}{more}."
    results = [file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id]
    return f"The results are in {' and '.join(results)}." if results else "There are no results."
