"""The HTTP API for workers, ``/worker/v1``: they speak nothing else, and hold no secret but their token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Body, Depends, Response
from fastapi.responses import StreamingResponse

from airflow_batch_llm.errors import ConflictError
from airflow_batch_llm.models import TOKENIZE
from airflow_batch_llm.service.access import State, WorkerPool
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.spec import request_parameters
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.suspects import cut_where_needed, done_rows
from airflow_batch_llm.store.chunks import ChunkLease, StoredPart, part_key
from airflow_batch_llm.wire import DatasetSpec
from airflow_batch_llm.worker_wire import (
    BeginRequest,
    Begun,
    Claim,
    ClaimRequest,
    CommitRequest,
    Extended,
    ExtendRequest,
    PartRecord,
    Registered,
    Registration,
    ReleaseRequest,
)

router: Final = APIRouter(prefix="/worker/v1")


def attempt_of_pool(state: State, pool: WorkerPool, chunk_id: int, attempt: int) -> ChunkLease:
    """The attempt at a chunk, if a worker of the caller's pool began it."""
    state.workers.check_attempt(pool, chunk_id, attempt)
    return ChunkLease(chunk_id, attempt)


Attempt = Annotated[ChunkLease, Depends(attempt_of_pool)]


@router.get("/access", status_code=204)
def get_access(pool: WorkerPool) -> None:
    """Answers a worker whose token is one for workers, and does nothing else."""


@router.post("/register", responses=problems(400, 409))
def register(state: State, pool: WorkerPool, registration: Registration) -> Registered:
    worker_id = state.workers.register(pool, registration)
    return Registered(worker_id=worker_id, lease_seconds=state.settings.lease_seconds)


@router.post("/workers/{worker_id}/leave", status_code=204, responses=problems(404))
def leave(state: State, pool: WorkerPool, worker_id: str) -> None:
    """A worker that ends says so, and no longer counts as serving its models."""
    state.workers.saw(pool, worker_id, gone=True)


@router.post("/claim", responses={204: {"description": "Nothing to do"}, **problems(400, 404)}, response_model=Claim)
def claim(state: State, pool: WorkerPool, request: ClaimRequest) -> Claim | Response:
    """The next chunk for this worker, or 204 where there is none."""
    state.workers.saw(pool, request.worker_id)
    chunk = state.chunks.claim(request.worker_id, lease_seconds=state.settings.lease_seconds)
    if chunk is None:
        return Response(status_code=204)
    done = done_rows(state, chunk["id"])
    chunk, condemned = cut_where_needed(state, chunk, done)
    dataset = state.chunks.dataset_of(chunk["batch_id"])
    spec = DatasetSpec.model_validate(dataset) if dataset is not None else None
    asks = spec is not None and chunk["endpoint"] != TOKENIZE
    at = f"/worker/v1/chunks/{chunk['id']}/attempts/{chunk['attempt']}"
    return Claim(
        chunk_id=chunk["id"],
        attempt=chunk["attempt"],
        batch_id=chunk["batch_id"],
        model=chunk["model"],
        endpoint=chunk["endpoint"],
        rows=chunk["rows"],
        rows_url=f"{at}/rows",
        sha256=chunk["sha256"],
        parts_url=f"{at}/parts/{{part}}",
        done=done,
        only=chunk["only"],
        alone=chunk["alone"],
        condemned=condemned,
        parameters=request_parameters(spec, chunk["endpoint"]) if spec and asks else {},
        choices=spec.choices if spec and asks else None,
        output_schema=spec.output_schema if spec and asks else None,
        whole=spec is None,
        lease_seconds=state.settings.lease_seconds,
    )


class PackedLines(StreamingResponse):
    """The lines of a chunk, as they lie in storage."""

    media_type = "application/zstd"


@router.get("/chunks/{chunk_id}/attempts/{attempt}/rows", response_class=PackedLines, responses=problems(400, 409))
def get_rows(state: State, lease: Attempt) -> PackedLines:
    """The chunk's lines, zstandard-compressed, while the lease holds."""
    chunk = state.chunks.get(lease)
    return PackedLines(_content(state, chunk["storage_key"]))


@router.put("/chunks/{chunk_id}/attempts/{attempt}/parts/{part}", status_code=204, responses=problems(400, 409))
def put_part(
    state: State, lease: Attempt, part: int, content: Annotated[bytes, Body(media_type="application/zstd")]
) -> None:
    """Stores a part's bytes. They count once an extend, commit or release names them."""
    chunk = state.chunks.get(lease)
    state.storage.put(part_key(chunk, lease.attempt, part, hashlib.sha256(content).hexdigest()), content)


@router.post("/chunks/{chunk_id}/begin", responses=problems(400, 409))
def begin(state: State, pool: WorkerPool, chunk_id: int, request: BeginRequest) -> Begun:
    """A worker is about to give its engine the first row of a chunk; only from then on can its end blame one.

    A worker that never says so loses chunks without a consequence: they are not cut, and no row of them is given up.
    """
    lease = attempt_of_pool(state, pool, chunk_id, request.attempt)
    seconds = state.settings.lease_seconds
    begun = state.chunks.begin(lease, lease_seconds=seconds)
    return Begun(lease_seconds=seconds, stop=begun.stop, wait=begun.wait)


@router.post("/chunks/{chunk_id}/extend", responses=problems(400, 409))
def extend(state: State, pool: WorkerPool, chunk_id: int, request: ExtendRequest) -> Extended:
    lease = attempt_of_pool(state, pool, chunk_id, request.attempt)
    seconds = state.settings.lease_seconds
    stop = state.chunks.extend(lease, _stored(state, lease, request.parts), lease_seconds=seconds)
    return Extended(lease_seconds=seconds, stop=stop)


@router.post("/chunks/{chunk_id}/commit", status_code=204, responses=problems(400, 409))
def commit(state: State, pool: WorkerPool, chunk_id: int, request: CommitRequest) -> None:
    lease = attempt_of_pool(state, pool, chunk_id, request.attempt)
    if not state.chunks.committed(lease):  # the answer to an earlier call may have been lost
        state.chunks.commit(lease, _stored(state, lease, request.parts))


@router.post("/chunks/{chunk_id}/release", status_code=204, responses=problems(400, 409))
def release(state: State, pool: WorkerPool, chunk_id: int, request: ReleaseRequest) -> None:
    lease = attempt_of_pool(state, pool, chunk_id, request.attempt)
    state.chunks.release(
        lease,
        _stored(state, lease, request.parts),
        outcome=request.outcome,
        detail=request.detail,
        rows_lost=request.rows_lost,
        in_flight=request.in_flight,
    )


def _stored(state: ServiceState, lease: ChunkLease, records: list[PartRecord]) -> list[StoredPart]:
    """The parts that a worker says it stored, after a look at whether they are there as it says."""
    if not records:
        return []
    chunk = state.chunks.get(lease)
    attempt = lease.attempt
    parts = [StoredPart(part_key(chunk, attempt, record.number, record.sha256), record) for record in records]
    for part in parts:
        _check(state, part)
    return parts


def _check(state: ServiceState, part: StoredPart) -> None:
    try:
        with state.storage.open(part.storage_key) as stream:
            found = hashlib.sha256(stream.read()).hexdigest()
    except FileNotFoundError:
        found = "nothing"
    if found != part.record.sha256:
        raise ConflictError(
            f"Part {part.storage_key} was said to have SHA-256 {part.record.sha256}, but storage has {found}. "
            "It was not committed. Store it again.",
            code="part_not_stored",
        )


def _content(state: ServiceState, storage_key: str) -> Iterator[bytes]:
    with state.storage.open(storage_key) as stream:
        while block := stream.read(1 << 20):
            yield block
