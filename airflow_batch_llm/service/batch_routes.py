"""``/v1/batches`` and ``/v1/models`` in OpenAI's shapes, and ``/healthz``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse

from airflow_batch_llm import __version__
from airflow_batch_llm.models import TOKENIZE, PauseReason
from airflow_batch_llm.service.access import Reader, State, Submitter, TokenName
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.showing import shown, shown_page
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.submission import checked_batch
from airflow_batch_llm.wire import Batch, BatchCancel, BatchCreate, BatchList, Health, Model, ModelList

router: Final = APIRouter()


@router.get("/healthz", responses=problems(503))
def healthz(state: State) -> Health:
    """Answers while the service can reach its store. Needs no token."""
    state.tokens.any()
    return Health(version=__version__, extensions=state.settings.extensions)


@router.get("/v1/models", responses=problems(401, 503))
def list_models(state: State, team: Reader) -> ModelList:
    return ModelList(
        data=[
            Model(
                id=served.model,
                created=int(served.since),
                endpoints=[endpoint for endpoint in served.endpoints if endpoint != TOKENIZE],
                workers=served.workers,
            )
            for served in state.workers.served(team)
        ]
    )


@router.post("/v1/batches", response_model=Batch, responses=problems(400, 401, 404, 409, 429, 503))
def create_batch(
    state: State,
    team: Submitter,
    token: TokenName,
    create: BatchCreate,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=512)] = None,
) -> Batch | JSONResponse:
    """Stores a batch after a cheap look at it, or finds the one that lives under its key. Who submits it watches it."""
    record = state.batches.submit(team, checked_batch(state, team, create, idempotency_key), by=token)
    return shown(state, team, _watched(state, team, record))


@router.get("/v1/batches", response_model=BatchList, responses=problems(400, 401, 404, 503))
def list_batches(
    state: State,
    team: Reader,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    key: str | None = None,
    group: str | None = None,
) -> BatchList | JSONResponse:
    """One page, newest first, of the batches before ``after`` (an id).

    With ``key`` only the generations under it, with ``group`` only the batches that were submitted with that group.
    """
    named = {"key": key, "group": group} if state.settings.extensions else {}
    found = state.batches.page(team, after=after, limit=limit + 1, **named)
    return shown_page(state, team, found[:limit], has_more=len(found) > limit)


@router.get("/v1/batches/{batch_id}", response_model=Batch, responses=problems(401, 404, 503))
def get_batch(state: State, team: Reader, batch_id: str) -> Batch | JSONResponse:
    """The batch as it stands. Who asks for it watches it, which matters where it has a ``pause_unwatched_after``."""
    return shown(state, team, _watched(state, team, state.batches.get(team, batch_id)))


@router.post("/v1/batches/{batch_id}/cancel", response_model=Batch, responses=problems(400, 401, 404, 409, 503))
def cancel_batch(
    state: State, team: Submitter, token: TokenName, batch_id: str, body: BatchCancel | None = None
) -> Batch | JSONResponse:
    """Asks for a batch's end; what was done of it is kept. One that has ended stays as it is."""
    asked = body if body and state.settings.extensions else BatchCancel()
    return shown(state, team, state.batches.cancel(team, batch_id, holder=asked.holder, by=asked.by or token))


def _watched(state: ServiceState, team: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch after it was noted that somebody watches it."""
    if record["pause_unwatched_after"] is None and record["paused"] != PauseReason.UNWATCHED:
        return record
    state.watching.saw(team, [record["id"]])
    return state.batches.get(team, record["id"])
