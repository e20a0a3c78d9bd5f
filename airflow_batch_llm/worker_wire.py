"""What travels between worker and service on ``/worker/v1``: control bodies, and the lines of chunks and parts.

Chunks and parts are zstandard-compressed JSON lines. Durations are seconds.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, BinaryIO, Final, Literal, Self, TypeVar

import msgspec
import zstandard
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

VERSION = 1

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""What is counted in ones: attempts, parts, rows of a chunk."""
Amount = Annotated[int, Field(ge=0, le=2**40)]
"""Tokens or bytes of one part. A batch adds up those of its parts in 64 bits: it would take millions of such parts to
overflow them, and one part of a worker has some million tokens at most."""
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
"""Of an engine's work on one part. They are added up too, and the sum must stay a number that JSON has."""
RowNumber = Annotated[int, Field(ge=0, le=2**63 - 1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""It becomes a piece of a storage key."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ServedModel(_Body):
    """One (model, endpoint) pair that a worker answers, and what exactly answers there."""

    model: Annotated[str, Field(max_length=512)]
    endpoint: Annotated[str, Field(max_length=64)]
    engine_identity: Annotated[str, Field(max_length=128)] | None = None
    """Two engines with the same identity give the same answers; null where the worker cannot tell."""
    body_fields: list[str] | None = None
    """The fields that the engine's own API description names for a request; null where it describes nothing."""


class Registration(_Body):
    """A worker says what it serves. A living worker of the same name is taken for its dead predecessor."""

    name: Annotated[str, Field(max_length=256)]
    version: Annotated[str, Field(max_length=64)]
    models: Annotated[list[ServedModel], Field(min_length=1)]
    server: Annotated[str, Field(max_length=64)] | None = None
    """Names the server that gets the rows where others may ask it too; null for an engine that is the worker's own."""

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: list[ServedModel]) -> list[ServedModel]:
        if len({(served.model, served.endpoint) for served in models}) < len(models):
            raise ValueError("a model is there twice at one endpoint")
        return models


class Registered(_Body):
    worker_id: str
    lease_seconds: float


class ClaimRequest(_Body):
    worker_id: str


class CondemnedRow(_Body):
    """A row that is not to be asked any more, and the error that it ends with."""

    row: int
    code: str
    message: str


class Claim(_Body):
    """The right to work on one chunk, and all that is needed to do it."""

    chunk_id: int
    attempt: int
    batch_id: str
    model: str
    endpoint: str
    rows: int
    rows_url: str
    """Where the chunk's lines are; opaque."""
    sha256: str
    parts_url: str
    """Where a part goes, with ``{part}`` for its number; opaque."""
    done: list[int]
    """Rows that earlier attempts committed: not to be done again."""
    only: list[int] | None = None
    """The rows that the chunk is about, where that is not every line."""
    alone: bool = False
    """Whether the engine is to have each row by itself, with nothing else: one of them may have killed another."""
    condemned: list[CondemnedRow] = []
    parameters: dict[str, Any]
    """The fields that all requests of the chunk share."""
    choices: list[str] | None = None
    """The only answers that count as valid. Each comes with its confidence."""
    output_schema: dict[str, Any] | None = None
    """The JSON Schema that an answer must be an instance of to count as valid."""
    whole: bool = False
    """Whether results carry the engine's whole answer, as request files need, and not its text alone."""
    lease_seconds: float


class PartRecord(_Body):
    """One stored part: what was put at ``parts_url``, and what it counts."""

    number: Count
    bytes: Amount
    sha256: Sha256
    rows: Count
    rows_failed: Count
    prompt_tokens: Amount
    cached_tokens: Amount
    completion_tokens: Amount
    reasoning_tokens: Amount = 0
    gpu_seconds: Seconds

    @model_validator(mode="after")
    def _failed_among_them(self) -> Self:
        if self.rows_failed > self.rows:
            raise ValueError(f"{self.rows_failed:,} of {self.rows:,} rows cannot have failed")
        return self


class BeginRequest(_Body):
    attempt: int


class Begun(_Body):
    lease_seconds: float
    stop: bool
    """The batch is being cancelled: release."""
    wait: bool
    """Rows of another worker are at the same server, and one of them or of this chunk must be alone: ask again."""


class ExtendRequest(_Body):
    attempt: Count
    parts: list[PartRecord] = []


class Extended(_Body):
    lease_seconds: float
    stop: bool
    """The batch is being cancelled: flush what is finished and release."""


class CommitRequest(_Body):
    attempt: Count
    parts: list[PartRecord] = []


class ReleaseRequest(_Body):
    attempt: Count
    parts: list[PartRecord] = []
    outcome: Literal["drained", "stopped", "engine_died"]
    detail: str | None = None
    rows_lost: Count = 0
    """Rows that were with the engine and gave no result."""
    in_flight: list[RowNumber] = []
    """Which ones those were, where the engine died."""


NO_RESPONSE: Final = msgspec.Raw()
"""What a result has that brings no answer along: msgspec takes no Raw beside None."""


class RowLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a chunk: a row number (from 0, in source order) and what is its own in its request."""

    row: int
    body: msgspec.Raw
    """A JSON object. It goes to the engine byte for byte, behind the fields that the chunk shares."""


class ResultLine(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One line of a part: what became of a row."""

    row: int
    status: Literal["success", "error", "invalid_output"]
    output: str | None = None
    outputs: list[str] | None = None
    """Instead of ``output``, the texts of all samples where more than one was asked for."""
    confidence: float | None = None
    """How probable the engine held this choice to be among all choices, from 0 to 1."""
    embedding: str | None = None
    """Instead of ``output``, a vector: its 32-bit floats, little-endian, as base64."""
    code: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    status_code: int | None = None
    """Of the engine's answer, where the claim asked for it whole."""
    response: msgspec.Raw = NO_RESPONSE
    """The body of that answer, byte for byte."""


_Line = TypeVar("_Line", RowLine, ResultLine)


def pack(lines: Iterable[RowLine | ResultLine]) -> bytes:
    """Lines as the bytes of a chunk or a part."""
    encoder = msgspec.json.Encoder()
    return compress(b"".join(encoder.encode(line) + b"\n" for line in lines))


def packed(lines: Iterable[ResultLine], most: int) -> Iterator[tuple[list[ResultLine], bytes]]:
    """Lines as parts of at most ``most`` bytes before they are compressed, or of one line."""
    encoder = msgspec.json.Encoder()
    waiting: list[ResultLine] = []
    content = bytearray()
    for line in lines:
        encoded = encoder.encode(line) + b"\n"
        if waiting and len(content) + len(encoded) > most:
            yield waiting, compress(bytes(content))
            waiting, content = [], bytearray()
        waiting.append(line)
        content += encoded
    if waiting:
        yield waiting, compress(bytes(content))


def compress(lines: bytes) -> bytes:
    """Lines that were written already, as the bytes of a chunk or a part."""
    return zstandard.compress(lines, level=3)


def decompress(content: bytes) -> bytes:
    """The lines of a chunk or a part that was read whole."""
    with zstandard.ZstdDecompressor().stream_reader(content) as reader:
        return bytes(reader.read())


def read_lines(lines: bytes, kind: type[_Line]) -> Iterator[_Line]:
    """Lines of which all bytes are there."""
    decoder = msgspec.json.Decoder(kind)
    return (decoder.decode(line) for line in lines.splitlines())


def unpack(stream: BinaryIO, kind: type[_Line]) -> Iterator[_Line]:
    """The lines of a chunk or a part, streamed."""
    decoder = msgspec.json.Decoder(kind)
    with zstandard.ZstdDecompressor().stream_reader(stream) as reader:
        for line in io.BufferedReader(reader):
            yield decoder.decode(line)
