"""``/v1/files`` as OpenAI has it: uploads, and the result files of batches."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from airflow_batch_llm.models import FilePurpose
from airflow_batch_llm.service.access import Reader, State, Submitter
from airflow_batch_llm.service.byte_range import UnsatisfiableRangeError, byte_range
from airflow_batch_llm.service.problems import problem, problems
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.uploads import Received, Room, receive
from airflow_batch_llm.store.files import StoredFile
from airflow_batch_llm.wire import FileDeleted, FileExpiry, FileList, FileObject

router: Final = APIRouter()

BLOCK_BYTES: Final = 1 << 20
MOST_LISTED: Final = 10_000
BINARY: Final = "application/octet-stream"

_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "Requests, one a line."},
                        "purpose": {"type": "string", "enum": [FilePurpose.BATCH, FilePurpose.DATASET]},
                        "expires_after": FileExpiry.model_json_schema(),
                    },
                },
                "encoding": {"expires_after": {"style": "deepObject", "explode": True}},
            }
        },
    }
}
_BYTES: Final[dict[str, Any]] = {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}}
_CONTENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The whole file.", **_BYTES},
    206: {"description": "The range.", **_BYTES},
}


@router.post("/v1/files", responses=problems(400, 401, 413), openapi_extra=_FORM)
async def upload_file(state: State, team: Submitter, request: Request) -> FileObject:
    """Stores a file of requests. What is sent is written while it comes, whatever its size."""
    file_id = f"file-{uuid.uuid4().hex}"
    key = f"files/{file_id}"
    length = request.headers.get("content-length")
    received = await receive(
        request.stream(),
        content_type=request.headers.get("content-type"),
        content_length=int(length) if length is not None else None,
        storage=state.storage,
        key=key,
        most_bytes=state.settings.limits.file_bytes,
        room=_room(state),
    )
    return await run_in_threadpool(_noted, state, team, _record(state, file_id, key, received))


@router.get("/v1/files", responses=problems(400, 401, 404))
def list_files(
    state: State,
    team: Reader,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> FileList:
    """One page by time of creation; ``after`` is the id of the last file seen."""
    found = state.files.page(team, after=after, limit=limit + 1, order=order, purpose=purpose)
    shown = [_file_object(stored) for stored in found[:limit]]
    return FileList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@router.get("/v1/files/{file_id}", responses=problems(400, 401, 404))
def get_file(state: State, team: Reader, file_id: str) -> FileObject:
    return _file_object(state.files.get(team, file_id))


@router.delete("/v1/files/{file_id}", responses=problems(400, 401, 404, 409))
def delete_file(state: State, team: Submitter, file_id: str) -> FileDeleted:
    """Deletes a file, unless a batch is still to read it."""
    stored = state.files.delete(team, file_id)
    state.storage.delete(stored.storage_key)
    return FileDeleted(id=file_id)


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses=_CONTENT | problems(400, 401, 404, 416, 503),
)
def get_file_content(
    state: State,
    team: Reader,
    file_id: str,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """The file's bytes, or one range of them, so that a download that broke off can go on."""
    stored = state.files.get(team, file_id)
    etag = f'"{stored.sha256}"'
    try:
        wanted = byte_range(range_, stored.bytes) if if_range in (None, etag) else None
    except UnsatisfiableRangeError:
        return _unsatisfiable(stored, range_)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Disposition": attachment(stored.filename),
        "Content-Length": str(stored.bytes if wanted is None else len(wanted)),
    }
    if wanted is not None:
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{stored.bytes}"
    blocks = _opened(state, team, stored, range(stored.bytes) if wanted is None else wanted)
    return StreamingResponse(blocks, 200 if wanted is None else 206, headers, media_type=BINARY)


def _room(state: ServiceState) -> Room | None:
    """What uploads may fill of the service's own disk; a bucket has no end."""
    settings = state.settings
    return None if settings.storage_url else Room(settings.home, settings.limits.spare_bytes)


def _record(state: ServiceState, file_id: str, key: str, received: Received) -> StoredFile:
    return StoredFile(
        id=file_id,
        purpose=received.fields.purpose,
        filename=received.fields.filename or file_id,
        bytes=received.bytes,
        sha256=received.sha256,
        storage_key=key,
        created_at=0.0,  # the store says when; the expiry is counted from there
        expires_at=float(received.fields.seconds or state.settings.file_seconds),
    )


def _noted(state: ServiceState, team: str, stored: StoredFile) -> FileObject:
    """Bytes first, record second: a record never stands without its bytes, and bytes that get none go again."""
    try:
        return _file_object(state.files.add(team, stored))
    except BaseException:
        state.storage.delete(stored.storage_key)
        raise


def _file_object(stored: StoredFile) -> FileObject:
    return FileObject(
        id=stored.id,
        bytes=stored.bytes,
        created_at=int(stored.created_at),
        filename=stored.filename,
        purpose=stored.purpose,
        expires_at=None if stored.expires_at is None else int(stored.expires_at),
    )


def attachment(filename: str) -> str:
    """The Content-Disposition of a download under that name."""
    return f"attachment; filename*=UTF-8''{quote(filename, safe='')}"


def _unsatisfiable(stored: StoredFile, wanted: str | None) -> Response:
    return problem(
        416,
        f"File {stored.id} has {stored.bytes:,} bytes, and `{wanted}` is behind them. Nothing was sent.",
        "range_not_satisfiable",
        "Range",
        {"Content-Range": f"bytes */{stored.bytes}"},
    )


def _opened(state: ServiceState, team: str, stored: StoredFile, wanted: range) -> Iterator[bytes]:
    """The blocks to send, of a stream that is open: trouble with the storage is then an answer, not half of one."""
    blocks = _blocks(state, stored, wanted)
    try:
        next(blocks)
    except FileNotFoundError as error:
        state.files.get(team, stored.id)  # deleted just now, perhaps
        raise OSError(f"the bytes of file {stored.id} are missing, though its record stands") from error
    return blocks


def _blocks(state: ServiceState, stored: StoredFile, wanted: range) -> Iterator[bytes]:
    with state.storage.open(stored.storage_key) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size != stored.bytes:
            raise OSError(f"file {stored.id} has {size:,} bytes there and {stored.bytes:,} in its record")
        stream.seek(wanted.start)
        left = len(wanted)
        yield b""
        while left and (block := stream.read(min(BLOCK_BYTES, left))):
            left -= len(block)
            yield block
