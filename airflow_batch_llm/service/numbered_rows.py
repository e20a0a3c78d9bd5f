"""Rows of a table by their numbers: no more of it is read than the places that hold them, and only so many bytes.

Of Parquet the row groups of the rows are read, of other formats the beginning of the file.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.service.blocks import BLOCK_BYTES
from airflow_batch_llm.service.source_files import Opens, SourceFile
from airflow_batch_llm.service.sources import LINE, open_source
from airflow_batch_llm.service.staged_schema import STAGED_LINE
from airflow_batch_llm.service.target_results import READ_AHEAD
from airflow_batch_llm.storage.tree import Entry

MOST_BYTES: Final = 64 << 20
"""Of a table, as it is stored, for one page."""
MOST_UNPACKED_BYTES: Final = 256 << 20
"""Of the same, as it is when it is no longer compressed; a row group of 128 MB fits, as large ones are made."""
MOST_TEXT_BYTES: Final = 8 << 20
"""From the start of a file that has no row groups."""
MOST_COLUMNS: Final = 50
"""That are shown; those that the prompt needs come first."""
BINARY: Final = "(bytes)"
"""What is shown of a column of bytes, which is not read."""
_BLOCK_ROWS: Final = 64
_DICTIONARIES: Final = frozenset({pa.string(), pa.large_string()})
_BYTES: Final = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)

Values = dict[str, Any]
"""A row's columns, none of them cut."""


@dataclass
class Allowance:
    """What may still be read for a page."""

    left: int = MOST_BYTES
    text_left: int = MOST_TEXT_BYTES
    unpacked_left: int = MOST_UNPACKED_BYTES

    def takes(self, stored: int, unpacked: int) -> bool:
        """Whether so many bytes may be read, which are so many without compression; if so they count as read."""
        if stored > self.left or unpacked > self.unpacked_left:
            return False
        self.left -= stored
        self.unpacked_left -= unpacked
        return True


def parquet_rows(
    stream: BinaryIO,
    wanted: Collection[int],
    allowance: Allowance,
    *,
    first: Collection[str] = (),
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, Values]]:
    """The wanted ones of the file's rows, by their number in it; those of row groups that are too large are left out.

    :param first: the columns that are needed before others, where there are many.
    :param names: of a file that was staged with its row numbers before all, the names of its other columns.
    """
    with pq.ParquetFile(stream) as file:
        schema = file.schema_arrow
    if names is not None:
        schema = schema.remove(0)
        names = [LINE] if schema.names == [STAGED_LINE] else names  # JSON lines, however their fields are typed later
    dictionaries = [column.name for column in schema if column.type in _DICTIONARIES]
    stream.seek(0)
    with pq.ParquetFile(stream, read_dictionary=dictionaries, buffer_size=READ_AHEAD, pre_buffer=False) as file:
        shown = dict(zip(schema.names, schema.names if names is None else names, strict=True))
        read, unread = few_columns(schema, first, shown)
        start = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            places = sorted(row - start for row in wanted if start <= row < start + rows)
            if places and allowance.takes(*bytes_of(file.metadata.row_group(group), read)):
                for place, values in _of_group(file, group, read, places):
                    yield start + place, {shown[name]: value for name, value in values.items()} | unread
            start += rows


def text_rows(file: SourceFile, wanted: Collection[int], allowance: Allowance) -> Iterator[tuple[int, Values]]:
    """The same of JSON lines or CSV: the rows that the beginning of the file has."""
    last = max(wanted)
    source = open_source(file)
    source.file = dataclasses.replace(file, opener=_Bounded(file.opener, allowance))
    at = 0
    try:
        for rows in source.batches(used=set(source.columns), kept=[], rows=_BLOCK_ROWS):
            values = rows.used if isinstance(rows.used, list) else rows.used.to_pylist()
            for place, row in enumerate(values, start=at):
                if place in wanted and place - at not in rows.faults:
                    yield place, dict(row)
            at += len(values)
            if at > last:
                return
    except _TooFarError:
        return


def counted_rows(stream: BinaryIO) -> int:
    """The rows of a Parquet file."""
    with pq.ParquetFile(stream) as file:
        return int(file.metadata.num_rows)


def few_columns(
    schema: pa.Schema, first: Collection[str], shown: Mapping[str, str] | None = None
) -> tuple[list[str], Values]:
    """Which columns are read, and what is shown of those of bytes, which are not.

    :param first: the columns that are needed before others, where there are many.
    :param shown: other names for the columns, which ``first`` and the values have then.
    """
    shown = shown or {name: name for name in schema.names}
    readable = [column.name for column in schema if shown[column.name] == LINE or not _is_bytes(column.type)]
    ordered = sorted(readable, key=lambda name: shown[name] not in first)
    read = set(ordered[:MOST_COLUMNS])
    unread = [column.name for column in schema if _is_bytes(column.type) and column.name not in read]
    return [name for name in schema.names if name in read], {shown[name]: BINARY for name in unread[:MOST_COLUMNS]}


def _is_bytes(kind: pa.DataType) -> bool:
    return any(check(kind) for check in _BYTES)


def bytes_of(group: Any, columns: Sequence[str]) -> tuple[int, int]:
    """The size of some columns of a row group of Parquet, as it is stored and without compression."""
    roots = tuple(f"{name}." for name in columns)
    chunks = [group.column(number) for number in range(group.num_columns)]
    read = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(roots)]
    return sum(chunk.total_compressed_size for chunk in read), sum(chunk.total_uncompressed_size for chunk in read)


def _of_group(
    file: pq.ParquetFile, group: int, columns: Sequence[str], places: Sequence[int]
) -> Iterator[tuple[int, Values]]:
    """Rows of one group by their place in it; it is decoded no further than the last of them."""
    of_group = file.metadata.row_group(group)
    size = sum(of_group.column(number).total_uncompressed_size for number in range(of_group.num_columns))
    some = max(1, min(1_024, of_group.num_rows * BLOCK_BYTES // max(1, size)))
    start = 0
    for batch in file.iter_batches(some, row_groups=[group], columns=list(columns), use_threads=False):
        for place in places:
            if start <= place < start + batch.num_rows:
                yield place, {name: _value(batch.column(name)[place - start]) for name in columns}
        start += batch.num_rows
        if start > places[-1]:
            return


def _value(scalar: pa.Scalar[Any]) -> Any:
    """The value; as text where Python has none for it (nanoseconds, the year 30000), or where it is no UTF-8."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return BINARY
    except (ValueError, OverflowError):
        return str(scalar.cast(pa.string()).as_py())


class _TooFarError(Exception):
    """What is wanted is not in the beginning of the file."""


@dataclass(frozen=True)
class _Bounded:
    """Opens files of which only so many bytes can be read."""

    opener: Opens
    allowance: Allowance

    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]:
        return self._opened(entry)

    @contextmanager
    def _opened(self, entry: Entry) -> Iterator[BinaryIO]:
        with self.opener.open(entry) as stream:
            yield cast("BinaryIO", io.BufferedReader(_BoundedStream(stream, self.allowance), 1 << 16))


class _BoundedStream(io.RawIOBase):
    def __init__(self, stream: BinaryIO, allowance: Allowance) -> None:
        self._stream = stream
        self._allowance = allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._allowance.text_left <= 0:
            raise _TooFarError
        content = self._stream.read(min(len(buffer), self._allowance.text_left))
        self._allowance.text_left -= len(content)
        buffer[: len(content)] = content
        return len(content)
