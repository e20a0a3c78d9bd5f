"""``/v1/batches`` and ``/v1/models`` in OpenAI's shapes, and ``/healthz``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from airflow_batch_llm import __version__
from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.service.access import State, Team
from airflow_batch_llm.service.lifecycle import to_wire
from airflow_batch_llm.service.results import target_lines
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.submission import checked_batch
from airflow_batch_llm.wire import Batch, BatchCancel, BatchCreate, BatchList, Health, Model, ModelList

router: Final = APIRouter()


@router.get("/healthz")
def healthz(state: State) -> Health:
    """Answers while the service can reach its store. Needs no token."""
    state.tokens.any()
    return Health(version=__version__, extensions=state.settings.extensions)


@router.get("/v1/models")
def list_models(state: State, team: Team) -> ModelList:
    return ModelList(
        data=[
            Model(id=served.model, created=int(served.since), endpoints=served.endpoints, workers=served.workers)
            for served in state.workers.served()
        ]
    )


@router.post("/v1/batches")
def create_batch(state: State, team: Team, create: BatchCreate) -> Batch:
    """Stores a batch after a cheap look at it, or finds the one that lives under its key."""
    return _shown(state, state.batches.submit(team, checked_batch(state, team, create)))


@router.get("/v1/batches")
def list_batches(
    state: State,
    team: Team,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    key: str | None = None,
) -> BatchList:
    """One page, newest first; with ``key`` only the generations under that key."""
    found = state.batches.page(team, after=after, limit=limit + 1, key=key)
    shown = [_shown(state, record) for record in found[:limit]]
    return BatchList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/batches/{batch_id}")
def get_batch(state: State, team: Team, batch_id: str) -> Batch:
    return _shown(state, state.batches.get(team, batch_id))


@router.post("/v1/batches/{batch_id}/cancel")
def cancel_batch(state: State, team: Team, batch_id: str, body: BatchCancel | None = None) -> Batch:
    return _shown(state, state.batches.cancel(team, batch_id, holder=body.holder if body else None))


@router.get("/v1/batches/{batch_id}/results")
def get_results(
    state: State, team: Team, batch_id: str, limit: Annotated[int | None, Query(ge=1)] = None
) -> StreamingResponse:
    """The target's rows as JSON lines, in source order, once the batch has ended."""
    record = state.batches.get(team, batch_id)
    if not record["manifest"]:
        raise NotFoundError(
            f"Batch {batch_id} is {record['status']} and has no target to read (yet).", code="no_results"
        )
    return StreamingResponse(target_lines(record["manifest"], limit), media_type="application/x-ndjson")


def _shown(state: ServiceState, record: Mapping[str, Any]) -> Batch:
    return to_wire(record, rate=state.batches.rate(record["id"]), served=state.workers.served())
