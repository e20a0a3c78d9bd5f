"""Writing a target: what a format can carry, the writers, and how a finished file gets to its place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pydantic import ValidationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.sources import LINE
from airflow_batch_llm.wire import Manifest
from airflow_batch_llm.worker_wire import ResultLine

OUTPUT_SCHEMA: Final = pa.schema(
    [
        ("llm_output", pa.string()),
        ("llm_status", pa.string()),
        ("llm_error", pa.string()),
        ("llm_finish_reason", pa.string()),
        ("llm_prompt_tokens", pa.int64()),
        ("llm_completion_tokens", pa.int64()),
    ]
)


def output_values(line: ResultLine) -> tuple[Any, ...]:
    """A result as the values of :data:`OUTPUT_SCHEMA`."""
    return (
        line.output,
        line.status,
        f"{line.code}: {line.error}" if line.error else None,
        line.finish_reason,
        line.prompt_tokens,
        line.completion_tokens,
    )


class TargetTakenError(Exception):
    """A file that is not this batch's stands where the target should go."""


def manifest_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.manifest.json")


def check_format(target: Path) -> None:
    """Raises :class:`InvalidRequestError` unless the ending names a format and the place is no folder."""
    if target.suffix.lower() not in _WRITERS:
        raise _refused(
            "format_not_supported",
            f"Target {target} ends in {target.suffix or 'nothing'}; a target ends in .parquet, .jsonl or .csv.",
        )
    if target.is_dir():
        raise _refused("target_is_folder", f"Target {target} is a folder. Name a file.")


def check_free(target: Path, *, overwrite: bool, owners: set[str]) -> None:
    """Raises :class:`InvalidRequestError` where a target exists that may not be replaced."""
    if overwrite or not target.exists():
        return
    manifest = read_manifest(target)
    if manifest is None or not {manifest.key, manifest.series} & owners:
        written = f"batch {manifest.batch_id} wrote it" if manifest else "no manifest stands beside it"
        raise _refused(
            "target_exists",
            f"Target {target} exists ({written}). Choose another target, or allow it to be replaced with overwrite.",
        )


def check_carries(target: Path, schema: pa.Schema) -> None:
    """Raises :class:`InvalidRequestError` for a column that the target's format would bend."""
    suffix = target.suffix.lower()
    for column in schema:
        if suffix == ".parquet" and _has_empty_struct(column.type):
            raise _refused(
                "column_not_supported",
                f"Column {column.name!r} holds only empty objects, which a .parquet target cannot hold. "
                "Use a .jsonl target, or leave the column out by listing the columns to keep in passthrough.",
            )
        if suffix != ".parquet" and not _plain(column.type, nested=suffix == ".jsonl"):
            raise _refused(
                "column_not_supported",
                f"Column {column.name!r} is of type {column.type}, which a {suffix} target cannot hold unharmed. "
                "Use a .parquet target, or leave the column out by listing the columns to keep in passthrough.",
            )


def read_manifest(target: Path) -> Manifest | None:
    """The manifest beside a target, if there is one that can be read."""
    try:
        return Manifest.model_validate_json(manifest_path(target).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


class TargetWriter(Protocol):
    """Takes rows in source order: what was staged of them, and the output columns beside it."""

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


class ParquetWriter:
    """Parquet with zstd. The source's columns keep their types."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = pa.schema([*schema, *OUTPUT_SCHEMA])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        self._writer.write_batch(pa.record_batch([*staged.columns, *output.columns], schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class CsvWriter:
    """CSV in UTF-8 with a line of names. Null is an empty field, an empty text is ``""``."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = pa.schema([*schema, *OUTPUT_SCHEMA])
        self._writer = pa_csv.CSVWriter(path, self._schema)

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        self._writer.write_batch(pa.record_batch([*staged.columns, *output.columns], schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class JsonlWriter:
    """JSON objects, one a line. The fields of a JSONL source are repeated to the letter."""

    def __init__(self, path: Path, schema: pa.Schema, *, kept: list[str] | None = None) -> None:
        self._stream = path.open("wb")
        self._names = schema.names
        self._kept = None if kept is None else set(kept)

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        rows = self._lines(staged) if self._names == [LINE] else self._objects(staged)
        for start, added in zip(rows, output.to_pylist(), strict=True):
            self._stream.write(_joined(start, orjson.dumps(added)))

    def close(self) -> None:
        self._stream.close()

    def _objects(self, staged: pa.RecordBatch) -> Iterator[bytes]:
        if not self._names:
            return iter([b"{}"] * staged.num_rows)
        return (orjson.dumps(row) for row in staged.rename_columns(self._names).to_pylist())

    def _lines(self, staged: pa.RecordBatch) -> Iterator[bytes]:
        for line in staged.column(0).to_pylist():
            yield b"{}" if line is None else self._filtered(line)

    def _filtered(self, line: bytes) -> bytes:
        if self._kept is None:
            return line
        row = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        return msgspec.json.encode({name: value for name, value in row.items() if name in self._kept})


_WRITERS: Final = {".parquet": ParquetWriter, ".csv": CsvWriter, ".jsonl": JsonlWriter}


def open_writer(path: Path, suffix: str, schema: pa.Schema, *, kept: list[str] | None) -> TargetWriter:
    """A writer into ``path`` for the format that ``suffix`` names; ``kept`` are the fields of JSON lines to repeat."""
    if suffix == ".jsonl":
        return JsonlWriter(path, schema, kept=kept)
    return CsvWriter(path, schema) if suffix == ".csv" else ParquetWriter(path, schema)


@contextmanager
def beside(target: Path, batch_id: str) -> Iterator[Path]:
    """A hidden file in the target's folder to write into; it goes when it was not moved to its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{batch_id}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def publish(new: Path, target: Path, *, replace: bool) -> None:
    """Moves a finished file to its place, whole and at once. Raises :class:`TargetTakenError` if it may not."""
    with new.open("rb") as stream:
        os.fsync(stream.fileno())
    if replace:
        new.replace(target)
        return
    try:
        os.link(new, target)
    except FileExistsError as error:
        raise TargetTakenError(
            f"Target {target} was created by somebody else while the batch ran. It was not touched; "
            "move it away and the batch will end."
        ) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _joined(start: bytes, added: bytes) -> bytes:
    """Two JSON objects as one line."""
    head = start.rstrip()[:-1].rstrip()
    return (head if head == b"{" else head + b",") + added[1:] + b"\n"


def _plain(kind: Any, *, nested: bool) -> bool:
    types = pa.types
    if nested and (types.is_list(kind) or types.is_large_list(kind)):
        return _plain(kind.value_type, nested=True)
    if nested and types.is_struct(kind):
        return all(_plain(column.type, nested=True) for column in kind)
    if types.is_dictionary(kind):
        return _plain(kind.value_type, nested=nested)
    if types.is_timestamp(kind) or types.is_time(kind):
        return bool(kind.unit != "ns")
    return any(
        check(kind)
        for check in (
            types.is_string,
            types.is_large_string,
            types.is_integer,
            types.is_floating,
            types.is_boolean,
            types.is_date,
            types.is_null,
        )
    )


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return pa.types.is_nested(kind) and any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))


def _refused(code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param="dataset.target")
