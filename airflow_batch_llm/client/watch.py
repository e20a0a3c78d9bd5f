"""Waiting for a batch: the decision after each look, and the loop that looks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.errors import (
    BatchCancelledError,
    BatchEndedError,
    BatchExpiredError,
    BatchFailedError,
    NoAnswerError,
)
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch, Estimate

log = logging.getLogger(__name__)

LONGEST_PAUSE: Final = timedelta(minutes=1)
"""How far apart looks drift while the service does not answer."""

_ENDED_BADLY: Final[dict[BatchStatus, type[BatchEndedError]]] = {
    BatchStatus.FAILED: BatchFailedError,
    BatchStatus.CANCELLED: BatchCancelledError,
    BatchStatus.EXPIRED: BatchExpiredError,
}


def why_it_ended(batch: Batch) -> str:
    """One paragraph on a batch that ended without ``completed``: what, how far, and what was left behind."""
    counts = batch.request_counts
    sentences = [f"Batch {batch.id} ended as {batch.status}."]
    sentences += [error.message for error in batch.errors.data[:3]] if batch.errors else []
    if counts.total:
        sentences.append(f"{counts.completed} of {counts.total} rows were answered and {counts.failed} failed.")
    return " ".join([*sentences, _what_is_left(batch)])


def _what_is_left(batch: Batch) -> str:
    if batch.manifest:
        return f"What was done is in {batch.manifest.files[0].uri}."
    if batch.input_file_id is None:
        return "No target was written."
    files = {"output": batch.output_file_id, "error": batch.error_file_id}
    there = [f"{name} file {file_id}" for name, file_id in files.items() if file_id]
    return f"What was done is in its {' and its '.join(there)}." if there else "No result file was written."


def raise_unless_completed(batch: Batch) -> None:
    """Raises the error that fits a batch that ended in any other way than ``completed``."""
    if kind := _ENDED_BADLY.get(batch.status):
        raise kind(why_it_ended(batch), batch_id=batch.id)


def progress_line(batch: Batch) -> str:
    """How far a batch is, in one line for a log."""
    progress = batch.progress
    total, done, failed = rows_so_far(batch)
    parts = [f"Batch {batch.id} is {status_words(batch)}"]
    if total:
        parts.append(f"{done:,} of {total:,} rows ({done / total:.0%})")
    if failed:
        parts.append(f"{failed:,} failed")
    if progress.rows_duplicate:
        parts.append(f"{progress.rows_duplicate:,} duplicates")
    if progress.rows_reused:
        parts.append(f"{progress.rows_reused:,} reused")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"about {progress.eta_seconds:,.0f} s to go")
    line = ", ".join(parts)
    return f"{line}. {progress.waiting_for}" if progress.waiting_for else line


def status_words(batch: Batch) -> str:
    """The status, and whether the batch is paused."""
    return f"{batch.status}, paused" if batch.paused else str(batch.status)


def estimate_lines(estimate: Estimate) -> list[tuple[str, str]]:
    """An estimate as pairs of a name and a value, for a log or a table."""
    per_row = estimate.prompt_tokens / estimate.rows_asked if estimate.rows_asked else 0.0
    lines = [
        ("Rows", f"{estimate.rows:,}"),
        ("… that cannot be asked", f"{estimate.rows_faulty:,}"),
        ("… that equal another row", f"{estimate.rows_duplicate:,}"),
        ("… that were answered before", f"{estimate.rows_reused:,}"),
        ("… to be asked", f"{estimate.rows_asked:,}"),
        ("Prompt tokens", f"{estimate.prompt_tokens:,} ({per_row:,.1f} a row, by {_counted_by(estimate)})"),
        ("Answer tokens", f"about {estimate.completion_tokens:,}"),
    ]
    if estimate.gpu_seconds is not None:
        lines.append(("GPU-seconds", f"about {estimate.gpu_seconds:,.0f}"))
    if estimate.cost is not None:
        lines.append(("Cost", f"about {estimate.cost:,.2f}"))
    return lines


def _counted_by(estimate: Estimate) -> str:
    if estimate.tokens_from == "characters":
        return "four characters for one: no engine counted"
    return f"a tokenized sample of {estimate.sample_rows:,} rows"


def rows_so_far(batch: Batch) -> tuple[int, int, int]:
    """Rows in all, done and failed; other servers have no more to say than OpenAI's counts."""
    progress, counts = batch.progress, batch.request_counts
    if progress.rows_total:
        return progress.rows_total, progress.rows_done, progress.rows_failed
    return counts.total, counts.completed + counts.failed, counts.failed


@dataclass
class Watch:
    """Looks at one batch until it ends. A service that does not answer is asked again, ever more slowly, for ever."""

    client: AsyncBatchClient
    batch_id: str
    poll_interval: timedelta

    async def snapshots(self) -> AsyncGenerator[Batch]:
        """The batch as it stands, look after look; the last one has ended."""
        pause = self.poll_interval
        while True:
            try:
                batch = await self.client.get(self.batch_id)
            except NoAnswerError as error:
                pause = min(pause * 2, LONGEST_PAUSE)
                log.warning("%s Looking again in %.0f s.", error, pause.total_seconds())
            else:
                pause = self.poll_interval
                yield batch
                if batch.status.ended:
                    return
            await asyncio.sleep(pause.total_seconds())
