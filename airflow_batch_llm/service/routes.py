"""The HTTP API for clients: ``/v1`` in OpenAI's shapes, and ``/healthz``."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from airflow_batch_llm import __version__
from airflow_batch_llm.errors import InvalidRequestError, NotFoundError, UnauthorizedError
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.service.lifecycle import to_wire
from airflow_batch_llm.service.results import target_lines
from airflow_batch_llm.service.spec import check_dataset, content_sha256
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.batches import NewBatch
from airflow_batch_llm.store.files import StoredFile
from airflow_batch_llm.wire import (
    Batch,
    BatchCancel,
    BatchCreate,
    BatchList,
    FileDeleted,
    FileObject,
    Model,
    ModelList,
)

router: Final = APIRouter()
_bearer: Final = HTTPBearer(auto_error=False)


def service_state(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


State = Annotated[ServiceState, Depends(service_state)]


def authenticated_team(state: State, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """The team whose token the request carries."""
    team = state.tokens.team_of(given.credentials) if given else None
    if team is None:
        what = "The token is not one of this service's." if given else "The request carries no token."
        raise UnauthorizedError(
            f"{what} Send it as `Authorization: Bearer …`; the first one stands in the file `token` of the service's "
            "home.",
            code="invalid_api_key",
        )
    return team


Team = Annotated[str, Depends(authenticated_team)]


@router.get("/healthz")
def healthz(state: State) -> dict[str, str]:
    """Answers while the service can reach its store. Needs no token."""
    state.tokens.any()
    return {"status": "ok", "version": __version__}


@router.get("/v1/models")
def list_models(state: State, team: Team) -> ModelList:
    return ModelList(
        data=[
            Model(id=served.model, created=int(served.since), endpoints=served.endpoints, workers=served.workers)
            for served in state.workers.served()
        ]
    )


@router.post("/v1/files")
def upload_file(state: State, team: Team, file: UploadFile, purpose: Annotated[Literal["batch"], Form()]) -> FileObject:
    """Stores a file of requests."""
    content = file.file.read()
    file_id = f"file-{uuid.uuid4().hex}"
    key = f"files/{file_id}"
    state.storage.put(key, content)
    stored = StoredFile(
        id=file_id,
        purpose=purpose,
        filename=file.filename or file_id,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        storage_key=key,
        created_at=0.0,
        expires_at=None,
    )
    return _file_object(state.files.add(team, stored))


@router.get("/v1/files/{file_id}")
def get_file(state: State, team: Team, file_id: str) -> FileObject:
    return _file_object(state.files.get(team, file_id))


@router.get("/v1/files/{file_id}/content")
def get_file_content(state: State, team: Team, file_id: str) -> StreamingResponse:
    stored = state.files.get(team, file_id)
    return StreamingResponse(_content(state, stored.storage_key), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}")
def delete_file(state: State, team: Team, file_id: str) -> FileDeleted:
    stored = state.files.delete(team, file_id)
    state.storage.delete(stored.storage_key)
    return FileDeleted(id=file_id)


@router.post("/v1/batches")
def create_batch(state: State, team: Team, create: BatchCreate) -> Batch:
    """Stores a batch after a cheap look at it, or finds the one that lives under its key."""
    if create.dataset is None or create.model is None:
        raise InvalidRequestError(
            "This service runs tables: give `dataset` and `model`. Batches from an uploaded request file "
            "(`input_file_id`) are not supported. Nothing was submitted.",
            code="missing_required_parameter",
            param="dataset" if create.dataset is None else "model",
        )
    if create.endpoint != CHAT_COMPLETIONS:
        raise InvalidRequestError(
            f"Endpoint {create.endpoint!r} is not supported for a table; {CHAT_COMPLETIONS!r} is. "
            "Nothing was submitted.",
            code="endpoint_not_supported",
            param="endpoint",
        )
    owners = {name for name in (create.key, create.series) if name is not None}
    checked = check_dataset(create.dataset, state.places, owners=owners)
    new = NewBatch(
        content_sha256=content_sha256(create.dataset, create.model, create.endpoint, checked.source_path),
        dataset=create.dataset.model_dump(mode="json"),
        model=create.model,
        **create.model_dump(
            include={"endpoint", "metadata", "completion_window", "key", "series", "holder", "priority"}
        ),
    )
    return _shown(state, state.batches.submit(team, new))


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


def _file_object(stored: StoredFile) -> FileObject:
    return FileObject(
        id=stored.id,
        bytes=stored.bytes,
        created_at=int(stored.created_at),
        filename=stored.filename,
        purpose=stored.purpose,
        expires_at=None if stored.expires_at is None else int(stored.expires_at),
    )


def _content(state: ServiceState, storage_key: str) -> Iterator[bytes]:
    with state.storage.open(storage_key) as stream:
        while block := stream.read(1 << 20):
            yield block
