"""What an ended batch means for its task: a value for XCom, or the exception that fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from airflow.sdk import Asset, Context

from airflow_batch_llm.client.texts import estimate_lines, raise_unless_completed
from airflow_batch_llm.errors import BatchFailedError, BatchLLMError, RefusedError
from airflow_batch_llm.hooks.airflow_names import AirflowException, AirflowFailException
from airflow_batch_llm.wire import Batch

REQUEST_FILE_RESULT: Final = {"id", "status", "output_file_id", "error_file_id", "request_counts", "usage"}


class Log(Protocol):
    def info(self, event: str, *args: Any) -> Any: ...

    def warning(self, event: str, *args: Any) -> Any: ...


def outcome(batch: Batch, log: Log) -> dict[str, Any]:
    """The manifest of a batch that completed, as JSON types, its counts logged.

    A batch of a request file has no manifest: the ids of its result files stand in its place, with ``batch_id`` (also
    as ``id``), ``status``, ``request_counts`` and ``usage``.

    Raises AirflowFailException for a batch that failed (its input is wrong, and would be wrong again), AirflowException
    for one that was cancelled or expired (a retry goes on from what was done; on a server of others it starts anew).
    """
    _raise_unless_completed(batch)
    _log_counts(batch, log)
    if batch.manifest is not None:
        return batch.manifest.model_dump(mode="json")
    return {"batch_id": batch.id, **batch.model_dump(mode="json", include=REQUEST_FILE_RESULT)}


def estimated(batch: Batch, log: Log) -> dict[str, Any]:
    """The estimate of a dry run that completed, with ``batch_id``, logged. Raises as :func:`outcome` does."""
    _raise_unless_completed(batch)
    if batch.estimate is None:
        raise AirflowFailException(f"Batch {batch.id} completed without an estimate: the service does not make any.")
    log.info("::group::Estimate of batch %s", batch.id)
    for what, value in estimate_lines(batch.estimate):
        log.info("%s: %s", what, value)
    log.info("::endgroup::")
    return {"batch_id": batch.id, **batch.estimate.model_dump(mode="json")}


def tell_assets(context: Context, outlets: Iterable[Any], batch: Batch) -> None:
    """Gives the events of a task's assets what is known of the batch that wrote them."""
    for asset in outlets:
        if isinstance(asset, Asset):
            context["outlet_events"][asset].extra = asset_extra(batch)


def asset_extra(batch: Batch) -> dict[str, Any]:
    """What an asset event says of the batch that wrote the asset."""
    manifest = batch.manifest
    if manifest is None:
        return {"batch_id": batch.id}
    return {
        "batch_id": batch.id,
        "manifest": manifest.uri,
        "model": manifest.model,
        "files": [file.uri for file in manifest.files],
        "rows": manifest.rows,
        "counts": dict(manifest.counts),
        "prompt_tokens": manifest.prompt_tokens,
        "completion_tokens": manifest.completion_tokens,
    }


@contextmanager
def refusals_fail_the_task() -> Iterator[None]:
    """Turns what the service refuses into a failure without retries: the same call would be refused again.

    No answer stays an error that Airflow retries.
    """
    try:
        yield
    except RefusedError as error:
        raise AirflowFailException(f"The batch service refused this: {error}") from error


def _raise_unless_completed(batch: Batch) -> None:
    try:
        raise_unless_completed(batch)
    except BatchFailedError as error:
        raise AirflowFailException(str(error)) from error
    except BatchLLMError as error:
        raise AirflowException(f"{error} {_what_a_retry_does(batch)}") from error


def _what_a_retry_does(batch: Batch) -> str:
    # Only a service with its extensions says which team a batch belongs to.
    return "A retry goes on from what was done." if batch.team else "A retry submits it anew."


def _log_counts(batch: Batch, log: Log) -> None:
    counts = batch.request_counts
    log.info("::group::Counts of batch %s", batch.id)
    log.info("Rows: %s, answered: %s, failed: %s", counts.total, counts.completed, counts.failed)
    progress = batch.progress
    if progress.rows_duplicate or progress.rows_reused:
        log.info(
            "Of these %s got the answer of an equal row of this batch, and %s of an earlier one",
            progress.rows_duplicate,
            progress.rows_reused,
        )
    _log_tokens(batch, log)
    for file in batch.manifest.files if batch.manifest else []:
        log.info("Target: %s (%s rows, %s bytes)", file.uri, file.rows, file.bytes)
    if batch.manifest and (copies := batch.manifest.quarantine):
        log.info("Quarantine: %s (%s rows, %s bytes)", copies.uri, copies.rows, copies.bytes)
    for name, file_id in (("Output", batch.output_file_id), ("Error", batch.error_file_id)):
        if file_id:
            log.info("%s file: %s", name, file_id)
    log.info("::endgroup::")
    if counts.failed:
        log.warning(
            "%s of %s rows of batch %s failed: %s", counts.failed, counts.total, batch.id, _where_it_says_why(batch)
        )


def _log_tokens(batch: Batch, log: Log) -> None:
    progress, usage = batch.progress, batch.usage
    if progress.rows_total:
        log.info("Tokens: %s of prompts, %s of answers", progress.prompt_tokens, progress.completion_tokens)
        log.info("GPU-seconds: %.1f", progress.gpu_seconds)
    elif usage is not None:
        log.info("Tokens: %s of prompts, %s of answers", usage.input_tokens, usage.output_tokens)


def _where_it_says_why(batch: Batch) -> str:
    if batch.manifest is not None:
        copies = f" They are copied to {batch.manifest.quarantine.uri}." if batch.manifest.quarantine else ""
        return f"their llm_status is not `success`, and llm_error says why.{copies}"
    return f"the error file {batch.error_file_id} says why." if batch.error_file_id else "the server does not say why."
