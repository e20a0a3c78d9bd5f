"""A finished table's rows, read from the target from any row on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Final

import msgspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError, NotFoundError
from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.blocks import BLOCK_BYTES
from airflow_batch_llm.service.formats import DamagedError, FileFormat, decompressed
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.targets import read_manifest
from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError
from airflow_batch_llm.storage.local_tree import OutsideError
from airflow_batch_llm.wire import Manifest, ResultRow, TargetFile

_SEEKABLE: Final = (FileFormat("jsonl"), FileFormat("csv"))
"""The formats whose rows begin at a place in bytes."""
_STATUSES: Final = frozenset(RowStatus)
_DECODED: Final = 1_000
"""Most rows of Parquet that are decoded together: the longest page has as many."""
_AT_ONCE: Final = 100
"""Rows of Parquet that become Python's values together: a page has no use for thousands."""
READ_AHEAD: Final = 1 << 18
"""Bytes of a column of Parquet that are read at once, so that the rest of its row group is not read for a few rows."""
_NOT_OURS: Final = (
    *(ValueError, TypeError, RecursionError, csv.Error, msgspec.MsgspecError, pa.ArrowException, DamagedError),
    *(ChangedError, FileNotFoundError, OutsideError),
)
"""What reading raises where a file is not as its batch wrote it."""
_Rows = Iterator[tuple[dict[str, Any], int]]
"""Rows, each with the place in bytes where the next one begins, as far as that can be gone to."""


class _UnreadableError(Exception):
    """A file is not what its batch wrote; or, ``at_cursor``, no row begins where the caller says."""

    def __init__(self, *, at_cursor: bool = False) -> None:
        super().__init__()
        self.at_cursor = at_cursor


ColumnChoice = Callable[[pa.Schema], tuple[list[str], dict[str, Any]]]
"""Which columns of a Parquet target are read, and what stands for others."""


@dataclass(frozen=True)
class TargetReading:
    """How a target is read."""

    choice: ColumnChoice | None = None
    """All columns, unless this says which ones are enough."""
    skipped: Callable[[], object] = lambda: None
    """Is called for each row that is read over on the way to the first one; what it raises ends the reading."""


EVERYTHING: Final = TargetReading()


def target_results(
    places: Places, record: Any, first: int, offset: int, *, reading: TargetReading = EVERYTHING
) -> Iterator[tuple[str, ResultRow]]:
    """The target's rows from number ``first`` on, each with a cursor; ``offset`` is where that row's bytes begin.

    A file that has no places to go to is read from its beginning, and its rows before that one are skipped.

    Raises :class:`NotFoundError` where the target is gone, was edited or belongs to another batch by now, and
    :class:`InvalidRequestError` where no row begins there. Neither repeats anything of what was read.
    """
    manifest = Manifest.model_validate(record)
    check_standing(places, manifest)
    return _rows(places, manifest, first, offset, reading)


def wrong_cursor(after: str | None) -> InvalidRequestError:
    return InvalidRequestError(
        f"{after!r} is no cursor of this batch's results. Give the `last_id` of an earlier page, or nothing to begin.",
        code="invalid_cursor",
        param="after",
    )


def _rows(
    places: Places, manifest: Manifest, first: int, offset: int, reading: TargetReading
) -> Iterator[tuple[str, ResultRow]]:
    begins = 0
    for file in manifest.files:
        ends = begins + file.rows
        if first < ends:
            try:
                rows = _file_rows(places, file, first - begins, offset, reading)
                for row, (columns, end) in enumerate(rows, start=first):
                    yield f"line-{row + 1}.{end if row + 1 < ends else 0}", _shown(row, columns)
            except _UnreadableError as error:
                raise (wrong_cursor(f"line-{first}.{offset}") if error.at_cursor else _gone(manifest)) from error
            first, offset = ends, 0
        begins = ends


def _shown(row: int, columns: dict[str, Any]) -> ResultRow:
    return ResultRow(row=row, status=columns["llm_status"], columns=columns)


def check_standing(places: Places, manifest: Manifest) -> None:
    """Raises :class:`NotFoundError` where the target is not that batch's any more."""
    uri = manifest.files[0].uri
    if not places.have(uri):
        raise _gone(manifest)
    tree = places.tree(uri)
    standing = read_manifest(tree, manifest.uri)
    if standing is None or standing.batch_id != manifest.batch_id or tree.stat(uri) is None:
        raise _gone(manifest)


def _gone(manifest: Manifest) -> NotFoundError:
    return NotFoundError(
        f"Target {manifest.folder or manifest.files[0].uri} of batch {manifest.batch_id} was removed or replaced "
        "since, or changed by another hand.",
        code="target_gone",
    )


@contextmanager
def opened_target(places: Places, manifest: Manifest, file: TargetFile) -> Iterator[BinaryIO]:
    """The bytes of one file of a target.

    Raises :class:`NotFoundError` where it is gone, is not as its batch wrote it, or lies where the team may not read
    any more.
    """
    tree = places.tree(file.uri)
    try:
        entry = tree.stat(file.uri) if places.have(file.uri) else None
        if entry is not None and entry.size == file.bytes:
            with tree.open(entry) as stream:
                yield stream
            return
    except (ChangedError, FileNotFoundError, OutsideError) as error:
        raise _gone(manifest) from error
    raise _gone(manifest)


def _file_rows(places: Places, file: TargetFile, first: int, offset: int, reading: TargetReading) -> _Rows:
    """The rows of one file from its row ``first`` on, which begins at ``offset`` where that is not 0; all of them."""
    left = file.rows - first
    seeks = offset > 0 and FileFormat.of_name(file.uri) in _SEEKABLE
    try:
        for columns, end in islice(_read(places, file, first, offset if seeks else 0, reading), left):
            if columns.get("llm_status") not in _STATUSES:
                raise _UnreadableError(at_cursor=seeks)
            left -= 1
            yield columns, end
    except _NOT_OURS as error:
        raise _UnreadableError(at_cursor=seeks) from error
    except OSError as error:
        if error.errno is not None or isinstance(error, (StorageTroubleError, PermissionError)):
            raise
        raise _UnreadableError(at_cursor=seeks) from error  # so pyarrow says that a file is no Parquet
    if left:
        raise _UnreadableError(at_cursor=seeks)


def _read(places: Places, file: TargetFile, first: int, offset: int, reading: TargetReading) -> _Rows:
    tree = places.tree(file.uri)
    entry = tree.stat(file.uri)
    form = FileFormat.of_name(file.uri)
    if entry is None or form is None or entry.size != file.bytes:
        raise _UnreadableError
    with tree.open(entry) as stream:
        if form.kind == "parquet":
            yield from _parquet_rows(stream, first, reading.choice)
            return
        if offset:
            _check_begins(stream, offset, entry.size)
        with decompressed(stream, form.compression) as inner:
            read = _json_lines if form.kind == "jsonl" else _csv_records
            for columns, end in read(inner, offset, 0 if offset else first, reading.skipped):
                yield columns, end if form in _SEEKABLE else 0


def _check_begins(stream: BinaryIO, offset: int, size: int) -> None:
    """A row begins behind the end of another one, or of a line of names."""
    if offset < size:
        stream.seek(offset - 1)
        if stream.read(1) == b"\n":
            stream.seek(0)
            return
    raise _UnreadableError(at_cursor=True)


def _json_lines(stream: BinaryIO, offset: int, skip: int, skipped: Callable[[], object]) -> _Rows:
    if offset:
        stream.seek(offset)
    lines = _lines(stream)
    for line in islice(lines, skip):
        offset += len(line)
        skipped()
    for line in lines:
        offset += len(line)
        yield msgspec.json.decode(line, type=dict[str, Any]), offset


def _csv_records(stream: BinaryIO, offset: int, skip: int, skipped: Callable[[], object]) -> _Rows:
    lines = _CountedLines(_lines(stream))
    names = next(csv.reader(lines), [])
    if offset:
        stream.seek(offset)
        lines = _CountedLines(_lines(stream), offset)
    records = csv.reader(lines)
    for _ in islice(records, skip):
        skipped()
    for record in records:
        yield dict(zip(names, record, strict=True)), lines.position


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream that may not know lines itself."""
    rest = b""
    while block := stream.read(1 << 18):
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _parquet_rows(stream: BinaryIO, first: int, choice: ColumnChoice | None) -> _Rows:
    with pq.ParquetFile(stream, buffer_size=READ_AHEAD, pre_buffer=False) as file:
        groups, skipped = _groups_from(file.metadata, first)
        read, instead = (None, {}) if choice is None else choice(file.schema_arrow)
        skip = first - skipped
        for batch in file.iter_batches(
            decoded_together(file.metadata, groups), row_groups=groups, columns=read, use_threads=False
        ):
            wanted = batch.slice(skip)
            skip = max(0, skip - batch.num_rows)
            for start in range(0, wanted.num_rows, _AT_ONCE):
                for row in readable(wanted.slice(start, _AT_ONCE)).to_pylist():
                    yield as_json(row | instead), 0


def decoded_together(metadata: Any, groups: list[int]) -> int:
    """How many rows are decoded together: of long ones not all of a page at once."""
    found = [metadata.row_group(group) for group in groups]
    rows, size = sum(group.num_rows for group in found), sum(group.total_byte_size for group in found)
    fitting: int = rows * BLOCK_BYTES // max(1, size)
    return max(1, min(_DECODED, fitting))


def _groups_from(metadata: Any, first: int) -> tuple[list[int], int]:
    """The row groups that hold the rows from ``first`` on, and how many rows come before those."""
    skipped = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if skipped + rows > first:
            return list(range(group, metadata.num_row_groups)), skipped
        skipped += rows
    return [], first


class _CountedLines:
    """A file's lines as text for the CSV reader, with the place in bytes that they were read up to."""

    def __init__(self, lines: Iterator[bytes], position: int = 0) -> None:
        self._lines = lines
        self.position = position

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.position += len(line)
        return line.decode()


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """The row in JSON's types: dates and decimals as text."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS))
    return plain


def readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with those columns as text that Python has no values for (nanoseconds, the year 30000)."""
    return pa.record_batch([_as_text_if_needed(column) for column in batch.columns], names=batch.schema.names)


def _as_text_if_needed(column: pa.Array) -> pa.Array:
    if not pa.types.is_temporal(column.type):
        return column
    try:
        column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast(pa.string())
    return column
