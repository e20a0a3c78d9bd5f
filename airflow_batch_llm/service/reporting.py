"""One batch with all that a page tells of it, and the version of that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from airflow_batch_llm.models import Scope
from airflow_batch_llm.page_wire import BatchReport, PlanNumbers
from airflow_batch_llm.service.cost import cost_of
from airflow_batch_llm.service.phases import phases
from airflow_batch_llm.service.showing import as_batches
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.batches import no_such_batch
from airflow_batch_llm.store.changes import BatchChanges
from airflow_batch_llm.store.chunk_counts import ChunkCounts
from airflow_batch_llm.store.tokens import Access


def batch_report(
    state: ServiceState, changes: BatchChanges, access: Access, batch_id: str, *, seen: str | None
) -> BatchReport:
    """The report on a batch of the caller's team; nothing of it where the caller has ``seen`` all of it.

    Raises :class:`NotFoundError` for a batch that is not there, or not the team's.
    """
    may_act = access.allows(Scope.SUBMIT)
    found = changes.records(access.team, [batch_id])
    if not found:
        raise no_such_batch(batch_id)
    (batch_version, record), *_ = found  # read before the rest, which can only be newer than the version then
    told = _told(state, access.team, record).model_copy(update={"may_act": may_act})
    version = f"{batch_version}.{_digest(told)}"
    if version == seen:
        return BatchReport(version=version, at=told.at, may_act=may_act)
    return told.model_copy(update={"version": version})


def batch_version_in(version: str) -> str:
    """The version of the batch itself, which a waiter for its changes has seen, in that of a report."""
    return version.rpartition(".")[0]


def _told(state: ServiceState, team: str, record: Mapping[str, Any]) -> BatchReport:
    (batch,) = as_batches(state, [record], state.workers.served(team))
    story = state.stories.of(record)
    planned = record["in_progress_at"] is not None
    return BatchReport(
        version="",
        at=story.at,
        batch=batch,
        phases=phases(record, story.first_commit),
        timeline=story.timeline if planned else None,
        plan=_plan_numbers(record, story.chunks) if planned else None,
        workers=story.workers,
        attempts=story.attempts if planned else None,
        cost=None if record["dry_run"] else cost_of(record, state.settings),  # it only counts tokens
        acts=story.acts,
        generations=story.generations,
    )


def _plan_numbers(record: Mapping[str, Any], chunks: ChunkCounts) -> PlanNumbers:
    prompt_tokens = 0 if record["dry_run"] else record["prompt_tokens"]
    return PlanNumbers(
        rows_total=record["rows_total"],
        rows_duplicate=record["rows_duplicate"],
        rows_reused=record["rows_reused"],
        rows_asked=_rows_asked(record, chunks),
        chunks_total=record["chunks_total"],
        chunks_done=chunks.done,
        chunks_leased=chunks.leased,
        chunks_pending=chunks.pending,
        prefix_share=record["cached_tokens"] / prompt_tokens if prompt_tokens else None,
    )


def _rows_asked(record: Mapping[str, Any], chunks: ChunkCounts) -> int:
    """What the chunks have; those of a dry run are a sample of what would be asked."""
    if not record["dry_run"]:
        return chunks.rows
    if record["estimate"]:
        return int(record["estimate"]["rows_asked"])
    return int(record["rows_total"] - record["rows_duplicate"] - record["rows_reused"])


def _digest(told: BatchReport) -> str:
    """Of everything but the time of the look."""
    return hashlib.sha256(orjson.dumps(told.model_dump(mode="json", exclude={"at"}))).hexdigest()[:16]
