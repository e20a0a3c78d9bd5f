"""Takes an upload as it comes: the file's bytes go to storage block by block.

Streams: holds a block of the file in memory, and the other fields of the form, whatever the file's size.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from anyio import CancelScope
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.upload_fields import UploadFields, refused
from airflow_batch_llm.storage.base import Storage

BLOCK_BYTES: Final = 1 << 20
FORM_BYTES: Final = 1 << 16
"""The most that a form may have beside its file: fields, and the lines around each part. A usual form has hundreds."""


class TooLargeError(InvalidRequestError):
    """The file is larger than the service takes (HTTP 413)."""

    status = 413


class NoRoomError(InvalidRequestError):
    """The disk would be too full to go on working (HTTP 503)."""

    status = 503


@dataclass(frozen=True)
class Room:
    """The disk below a folder, of which ``spare`` bytes are to stay free: the service needs them to end what it has."""

    folder: Path
    spare: int

    def check(self, size: int) -> None:
        """Raises :class:`NoRoomError` where ``size`` more bytes would take what is to stay free."""
        free = shutil.disk_usage(self.folder).free
        if free - size < self.spare:
            raise NoRoomError(
                f"The file would leave {max(0, free - size):,} bytes free on the service's disk, which keeps "
                f"{self.spare:,} for the batches it has. Nothing was stored. Try again once files were deleted.",
                code="storage_full",
                param="file",
            )


@dataclass
class Received:
    """What came: the form's fields, and the file that is in storage now."""

    fields: UploadFields
    bytes: int = 0
    sha256: str = ""


async def receive(
    blocks: AsyncIterator[bytes],
    *,
    content_type: str | None,
    content_length: int | None,
    storage: Storage,
    key: str,
    most_bytes: int | None,
    room: Room | None = None,
) -> Received:
    """Stores the form's file under ``key``, where it appears once the form was read and found in order.

    Raises :class:`InvalidRequestError` for a form that is not, and whatever ``blocks`` raises where the client goes
    away; then nothing is left in storage.
    """
    if most_bytes is not None and content_length is not None and content_length > most_bytes + FORM_BYTES:
        raise _too_large(f"The request has {content_length:,} bytes", most_bytes)
    form = _Form(_boundary(content_type), UploadFields())
    async with _creating(storage, key) as stream:
        sink = _Sink(stream, room)
        await run_in_threadpool(sink.expect, content_length or 0)
        async for block in blocks:
            form.take(block)
            if most_bytes is not None and form.file_bytes > most_bytes:
                raise _too_large(f"The file has {form.file_bytes:,} bytes or more", most_bytes)
            if form.pending_bytes >= BLOCK_BYTES:
                await run_in_threadpool(sink.write, form.pending())
        form.end()
        await run_in_threadpool(sink.write, form.pending())
    return Received(form.fields, form.file_bytes, sink.digest.hexdigest())


@dataclass
class _Sink:
    stream: BinaryIO
    room: Room | None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def expect(self, size: int) -> None:
        if self.room is not None:
            self.room.check(size)

    def write(self, blocks: list[bytes]) -> None:
        self.expect(sum(map(len, blocks)))
        for block in blocks:
            self.digest.update(block)
            self.stream.write(block)


class _Form:
    """Reads ``multipart/form-data`` that is pushed into it, and keeps the file's bytes until they are taken away."""

    def __init__(self, boundary: bytes, fields: UploadFields) -> None:
        self.fields = fields
        self.file_bytes = 0
        self.pending_bytes = 0
        self._pending: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._header = b""
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._parser = _parser(boundary, self)

    def take(self, block: bytes) -> None:
        self._bytes += len(block)
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise _not_a_form(f"it cannot be read as multipart/form-data ({error})") from error
        if self._bytes - self.file_bytes > FORM_BYTES:
            raise _not_a_form(f"it has more than {FORM_BYTES:,} bytes beside its file")

    def pending(self) -> list[bytes]:
        blocks, self._pending, self.pending_bytes = self._pending, [], 0
        return blocks

    def end(self) -> None:
        """Says that nothing more comes. A form that was cut off could hold any part of the file."""
        if not self._ended:
            raise _not_a_form("it ends before its closing boundary")
        self.fields.check_complete()

    def on_part_begin(self) -> None:
        self._disposition = b""
        self._value = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header == b"content-disposition":
            self._disposition += data[start:end]

    def on_header_end(self) -> None:
        self._header = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _not_a_form("one of its parts has no name")
        self._name = _text(options[b"name"], "name")
        self.fields.begin(self._name, _text(options.get(b"filename", b""), "filename"))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.file_bytes += end - start
            self.pending_bytes += end - start
            self._pending.append(data[start:end])
        else:
            self._value += data[start:end]

    def on_part_end(self) -> None:
        if self._name != "file":
            self.fields.set(self._name, _text(bytes(self._value), self._name))

    def on_end(self) -> None:
        self._ended = True


def _parser(boundary: bytes, form: _Form) -> MultipartParser:
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_part_data": form.on_part_data,
                "on_part_end": form.on_part_end,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_end": form.on_end,
            },
        )
    except FormParserError as error:
        raise _not_a_form(f"its boundary cannot be used ({error})") from error


@asynccontextmanager
async def _creating(storage: Storage, key: str) -> AsyncIterator[BinaryIO]:
    """``storage.create`` for an event loop: begins and ends in worker threads, and ends when cancelled too."""
    created: AbstractContextManager[BinaryIO] = storage.create(key)
    stream = await run_in_threadpool(created.__enter__)
    try:
        yield stream
    except BaseException as error:
        with CancelScope(shield=True):
            await run_in_threadpool(_abandon, created, error)
        raise
    await run_in_threadpool(created.__exit__, None, None, None)


def _abandon(created: AbstractContextManager[BinaryIO], error: BaseException) -> None:
    created.__exit__(type(error), error, error.__traceback__)


def _boundary(content_type: str | None) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise _not_a_form(f"its Content-Type is {content_type!r}")
    if not options.get(b"boundary"):
        raise _not_a_form("its Content-Type names no boundary")
    return options[b"boundary"]


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise refused(f"`{name}` is not UTF-8: {error}.", "invalid_value", name) from error


def _not_a_form(why: str) -> InvalidRequestError:
    return refused(f"The body has to be a complete multipart/form-data form, but {why}.", "invalid_multipart", None)


def _too_large(what: str, most_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"{what}, and this service takes files of at most {most_bytes:,}. Nothing was stored. Split the file.",
        code="file_too_large",
        param="file",
    )
