"""``/v1/files``: uploads, and the result files of batches."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Form, UploadFile
from fastapi.responses import StreamingResponse

from airflow_batch_llm.service.access import State, Team
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.files import StoredFile
from airflow_batch_llm.wire import FileDeleted, FileObject

router: Final = APIRouter()


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
