"""A batch as clients see it: the stored record in OpenAI's words, with how far it is and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from airflow_batch_llm.models import BatchStatus, PauseReason
from airflow_batch_llm.store.batches import ORIGIN, Rate
from airflow_batch_llm.store.workers import ServedBy
from airflow_batch_llm.wire import (
    Batch,
    BatchError,
    BatchErrors,
    InputTokensDetails,
    Origin,
    OutputTokensDetails,
    Progress,
    RequestCounts,
    Usage,
)

_TIMES: Final = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "deadline",
)
_AS_STORED: Final = (
    "id",
    "endpoint",
    "model",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "metadata",
    "dataset",
    "key",
    "series",
    "group",
    "generation",
    "holder",
    "team",
    "priority",
    "fair_group",
    "manifest",
    "reuse",
    "dry_run",
    "paused",
    "pause_unwatched_after",
    "canary_rows",
    "canary",
    "estimate",
)

_PAUSED: Final = {
    PauseReason.REQUESTED: "It is paused, as somebody asked. `batch-llm resume {batch_id}` lets it go on.",
    PauseReason.UNWATCHED: "It is paused since nobody watches it, and goes on once somebody does.",
    PauseReason.CANARY: "Its first {canary_rows:,} rows are done, and the others wait until those are "
    "judged: `batch-llm resume {batch_id}` lets them go on.",
}


def to_wire(record: Mapping[str, Any], *, rate: Rate | None, served: list[ServedBy]) -> Batch:
    """The batch object for a stored batch."""
    times = {name: None if record[name] is None else int(record[name]) for name in _TIMES}
    return Batch.model_validate(
        {
            **{name: record[name] for name in _AS_STORED},
            **times,
            "origin": origin_of(record),
            "errors": _errors(record),
            "request_counts": _counts(record),
            "usage": _usage(record),
            "progress": progress_of(record, rate=rate, served=served),
        }
    )


def origin_of(record: Mapping[str, Any]) -> Origin | None:
    """Where in Airflow a stored batch comes from, if whoever submitted it has said so."""
    return None if record["dag_id"] is None else Origin(**{name: record[name] for name in ORIGIN})


def _errors(record: Mapping[str, Any]) -> BatchErrors | None:
    if not record["errors"]:
        return None
    return BatchErrors(data=[BatchError.model_validate(error) for error in record["errors"]])


def _counts(record: Mapping[str, Any]) -> RequestCounts:
    return RequestCounts(
        total=record["rows_total"],
        completed=record["rows_done"] - record["rows_failed"],
        failed=record["rows_failed"],
    )


def _usage(record: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=record["prompt_tokens"],
        input_tokens_details=InputTokensDetails(cached_tokens=record["cached_tokens"]),
        output_tokens=record["completion_tokens"],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=record["reasoning_tokens"]),
        total_tokens=record["prompt_tokens"] + record["completion_tokens"],
    )


def progress_of(record: Mapping[str, Any], *, rate: Rate | None, served: list[ServedBy]) -> Progress:
    """How far a stored batch is, and what it waits for."""
    going = record["status"] == BatchStatus.IN_PROGRESS
    rate = rate if going else None
    return Progress(
        **{name: record[name] for name in Progress.model_fields if name in record},
        rows_per_second=round(rate.rows, 2) if rate else None,
        tokens_per_second=round(rate.tokens, 2) if rate else None,
        eta_seconds=round(_rows_left(record) / rate.rows, 1) if rate and rate.rows and not record["paused"] else None,
        waiting_for=_waiting_for(record, served),
    )


def _rows_left(record: Mapping[str, Any]) -> int:
    """Rows that the engine is still to answer: one that equals another is answered with that."""
    return max(0, int(record["rows_total"] - record["rows_duplicate"] - record["rows_done"]))


def _waiting_for(record: Mapping[str, Any], served: list[ServedBy]) -> str | None:
    if record["paused"]:
        said = _PAUSED[record["paused"]].format(batch_id=record["id"], canary_rows=record["canary_rows"] or 0)
        return f"{said} {record['trouble']}" if record["trouble"] else said
    status = BatchStatus(record["status"])
    if record["trouble"]:
        return str(record["trouble"])
    if status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        return None
    if record["model"] is None:
        return None
    if any(model.model == record["model"] and record["endpoint"] in model.endpoints for model in served):
        return None
    there = ", ".join(model.model for model in served) or "none"
    return (
        f"It waits for a worker: no living worker serves model {record['model']!r} at {record['endpoint']} "
        f"(models served now: {there})."
    )
