"""What ``/v1/batches`` has beyond OpenAI's API: results as they come, a second try of what failed, pauses."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from airflow_batch_llm.models import PauseReason, RowStatus
from airflow_batch_llm.service.access import Reader, State, Submitter, TokenName
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.results import result_page
from airflow_batch_llm.service.showing import shown
from airflow_batch_llm.service.submission import check_repeatable, check_retry_rate
from airflow_batch_llm.wire import Batch, BatchAct, BatchDeleted, BatchResume, ResultPage

router: Final = APIRouter()


@router.get("/v1/batches/{batch_id}/results", responses=problems(400, 401, 404, 503))
def get_results(
    state: State,
    team: Reader,
    batch_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    status: RowStatus | None = None,
) -> ResultPage:
    """One page of rows: those committed so far while the batch runs, in source order once it has ended."""
    return result_page(state, state.batches.get(team, batch_id), after=after, limit=limit, status=status)


@router.delete("/v1/batches/{batch_id}", responses=problems(401, 404, 409, 503))
def delete_batch(state: State, team: Submitter, batch_id: str) -> BatchDeleted:
    """Forgets a batch that has ended, with its answers and result files: later batches ask for their rows anew.

    Its target stays, which is the caller's.
    """
    state.batches.delete(team, batch_id)
    for key in state.index_files.drop_empty(team):
        state.storage.delete(key)
    state.storage.delete_prefix(f"batches/{batch_id}")
    return BatchDeleted(id=batch_id)


@router.post("/v1/batches/{batch_id}/retry", response_model=Batch, responses=problems(400, 401, 404, 409, 429, 503))
def retry_batch(
    state: State, team: Submitter, token: TokenName, batch_id: str, body: BatchAct | None = None
) -> Batch | JSONResponse:
    """Opens a new generation that asks only for the rows that failed, expired or were cancelled, and keeps the rest."""
    record = state.batches.get(team, batch_id)
    check_retry_rate(state, team, record)
    check_repeatable(state, team, record)
    return shown(state, team, state.batches.retry(team, batch_id, by=_who(body, token)))


@router.post("/v1/batches/{batch_id}/pause", response_model=Batch, responses=problems(400, 401, 404, 409, 503))
def pause_batch(
    state: State, team: Submitter, token: TokenName, batch_id: str, body: BatchAct | None = None
) -> Batch | JSONResponse:
    """No worker gets more of a batch from here on; what they hold goes on to its end. Said twice it is said once."""
    record = state.pauses.pause(team, batch_id, PauseReason.REQUESTED, by=_who(body, token))
    return shown(state, team, record)


@router.post("/v1/batches/{batch_id}/resume", response_model=Batch, responses=problems(400, 401, 404, 409, 503))
def resume_batch(
    state: State, team: Submitter, token: TokenName, batch_id: str, body: BatchResume | None = None
) -> Batch | JSONResponse:
    """Lets a paused batch go on, whoever paused it, or only if it is paused for the reason given. Said twice it is said
    once."""
    reason = body.reason if body else None
    return shown(state, team, state.pauses.resume(team, batch_id, reason=reason, by=_who(body, token)))


def _who(body: BatchAct | None, token: str) -> str:
    return body.by if body and body.by else token
