"""The files that a batch left, sent in pieces: of a table its target's, from wherever they lie.

Never holds more than one piece in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final, NoReturn

from fastapi import Response
from fastapi.responses import StreamingResponse

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.file_routes import BINARY, BLOCK_BYTES, attachment, get_file_content
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.target_results import check_standing, opened_target
from airflow_batch_llm.wire import Manifest, TargetFile

RESULT_FILES: Final = ("output_file_id", "error_file_id")
"""Of a request file, in the order of their numbers."""


def download(state: ServiceState, record: Mapping[str, Any], number: int) -> Response:
    """File ``number`` (from 0) of the target; of a request file 0 is the output file and 1 the error file.

    Raises :class:`ConflictError` while there is none yet, and :class:`NotFoundError` where there is no such file, or it
    is not as its batch wrote it.
    """
    if record["dataset"] is None:
        return _result_file(state, record, number)
    if record["manifest"] is None:
        _refuse_without(record)
    manifest = Manifest.model_validate(record["manifest"])
    if number >= len(manifest.files):
        raise _no_such_file(record, number, len(manifest.files))
    places = state.places.of(record["team"])
    check_standing(places, manifest)
    file = manifest.files[number]
    headers = {
        "Content-Length": str(file.bytes),
        "Content-Disposition": attachment(PurePosixPath(file.uri).name),
        "ETag": f'"{file.sha256}"',
    }
    return StreamingResponse(_opened(places, manifest, file), 200, headers, media_type=BINARY)


def _result_file(state: ServiceState, record: Mapping[str, Any], number: int) -> Response:
    ids = [record[name] for name in RESULT_FILES]
    if not any(ids):
        _refuse_without(record)
    if number >= len(ids) or ids[number] is None:
        raise _no_such_file(record, number, len(ids))
    return get_file_content(state, record["team"], ids[number])


def _refuse_without(record: Mapping[str, Any]) -> NoReturn:
    status = BatchStatus(record["status"])
    if status.ended:
        raise NotFoundError(f"Batch {record['id']} has ended as {status} and left no file.", code="no_results")
    raise ConflictError(
        f"Batch {record['id']} is {status} and has no file yet: its files are written when all of its rows are done. "
        "Nothing was sent. Its rows so far are at /results.",
        code="no_results_yet",
    )


def _no_such_file(record: Mapping[str, Any], number: int, count: int) -> NotFoundError:
    return NotFoundError(
        f"Batch {record['id']} has no file {number}: it has {count:,}, counted from 0, and one that would be empty is "
        "not written.",
        code="file_not_found",
        param="file",
    )


def _opened(places: Places, manifest: Manifest, file: TargetFile) -> Iterator[bytes]:
    """The pieces to send, of a file that is open: what is wrong with it is then an answer, not half of one."""
    pieces = _pieces(places, manifest, file)
    next(pieces)
    return pieces


def _pieces(places: Places, manifest: Manifest, file: TargetFile) -> Iterator[bytes]:
    with opened_target(places, manifest, file) as stream:
        yield b""
        left = file.bytes
        while left and (piece := stream.read(min(BLOCK_BYTES, left))):
            left -= len(piece)
            yield piece
