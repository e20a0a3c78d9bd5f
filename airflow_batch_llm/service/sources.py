"""Reading a source table, a block of rows at a time. Memory is bounded by that, never by the table.

A row that cannot be read is a row all the same: it keeps its number and gets a fault instead of values.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, Self, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import OUTPUT_COLUMNS
from airflow_batch_llm.service.blocks import BLOCK_BYTES, ROW_BYTES, RowTooLargeError
from airflow_batch_llm.service.formats import DamagedError, decompressed
from airflow_batch_llm.service.parquet_blocks import parquet_blocks
from airflow_batch_llm.service.source_files import SourceFile
from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError

ROWS: Final = 8_192
"""How many rows are read at a time at most: some megabytes of text."""

LINE: Final = "\0line"
"""The staged column of a JSONL source: the line as it was, so that a JSONL target can repeat it to the letter."""

UNREADABLE: Final = frozenset({"ragged_line", "invalid_utf8", "invalid_json_line", "column_clash"})
"""The codes of the faults of rows that have no values; those of others come from what a template makes of them."""

csv.field_size_limit(ROW_BYTES)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be asked: a word for programs, a sentence for people."""

    code: str
    message: str


@dataclass
class SourceRows:
    """Consecutive rows: what the target repeats of them, what templates may use of them, what is wrong with them."""

    staged: pa.RecordBatch
    used: pa.RecordBatch | list[dict[str, Any]]
    """The columns that templates use, or the JSON objects that the rows are."""
    faults: dict[int, Fault] = field(default_factory=dict)
    """By position in this batch."""

    def __len__(self) -> int:
        return self.used.num_rows if isinstance(self.used, pa.RecordBatch) else len(self.used)

    def values(self, name: str) -> pa.Array | list[Any]:
        """A column's values; a row that lacks it has None."""
        return self.used.column(name) if isinstance(self.used, pa.RecordBatch) else [row.get(name) for row in self.used]


class Source(Protocol):
    """One file of a table that can be read from its start, as often as needed."""

    file: SourceFile
    columns: list[str]
    """The names of the columns; of a JSONL source, those of its first rows."""
    schema: pa.Schema | None
    """The types of the columns, where they have some."""
    fixed_columns: bool
    """Whether no other columns can turn up later."""

    def batches(
        self, *, used: set[str], kept: list[str], reserved: Sequence[str] = OUTPUT_COLUMNS, rows: int | None = None
    ) -> Iterator[SourceRows]:
        """All rows in order; ``used`` are the columns that templates need, ``kept`` those that the target repeats,
        ``reserved`` the names that the target adds, ``rows`` how many are read at a time at most."""


def open_source(file: SourceFile) -> Source:
    """The reader for the file's format. Raises :class:`InvalidRequestError` where it cannot be read."""
    with _readable(file):
        return _READERS[file.format.kind](file)


@contextmanager
def _readable(file: SourceFile) -> Iterator[None]:
    """Tells what is the file's fault from what may pass: a disk or a network that is away raises on."""
    try:
        yield
    except FileNotFoundError as error:
        raise _refused("source_not_found", f"Source {file.uri} does not exist.") from error
    except ChangedError as error:
        raise _refused("source_changed", f"Source {file.uri} changed while it was read. Submit it again.") from error
    except RowTooLargeError as error:
        raise _refused("row_too_large", f"Source {file.uri} cannot be read: {error}") from error
    except PermissionError as error:
        raise _refused("source_unreadable", f"Source {file.uri} cannot be read: {error.strerror or error}.") from error
    except DamagedError as error:
        message = f"Source {file.uri} is not a readable {file.format.compression} file: {_said(error)}."
        raise _refused("source_unreadable", message) from error
    except pa.ArrowException as error:
        raise _refused(
            "source_unreadable", f"Source {file.uri} is not a readable Parquet file: {_said(error)}."
        ) from error
    except OSError as error:
        if error.errno is not None or isinstance(error, StorageTroubleError):
            raise
        raise _refused("source_unreadable", f"Source {file.uri} is damaged: {_said(error)}.") from error


class ParquetSource:
    """A Parquet file. Its columns pass through in their own types."""

    fixed_columns = True

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        with file.open() as stream, pq.ParquetFile(stream) as parquet:
            self.schema = parquet.schema_arrow
        self.columns = list(self.schema.names)
        _check_names(file.uri, self.columns)

    def batches(
        self, *, used: set[str], kept: list[str], reserved: Sequence[str] = OUTPUT_COLUMNS, rows: int | None = None
    ) -> Iterator[SourceRows]:
        needed = [name for name in self.columns if name in used or name in kept]
        with _readable(self.file), self.file.open() as stream:
            for block in parquet_blocks(stream, self.schema, needed, rows or ROWS):
                yield SourceRows(block.select(kept), block.select([name for name in needed if name in used]))


class _Record(NamedTuple):
    line: int
    """The last one that it stands on."""
    fields: list[str]
    size: int
    """In characters."""


class CsvSource:
    """A CSV file in UTF-8 whose first line names the columns. Every value is text, to the letter: ``007`` stays so."""

    fixed_columns = True

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        with self._open() as stream:
            header = next(self._records(stream), None)
        if header is None:
            raise _refused("empty_source", f"Source {file.uri} is empty: it has not even a line of column names.")
        self.columns = header.fields
        if any("\udc80" <= char <= "\udcff" for name in self.columns for char in name):
            raise _refused("invalid_utf8", f"Source {file.uri} is not UTF-8: its first line has other bytes.")
        _check_names(file.uri, self.columns)
        self.schema = pa.schema([(name, pa.string()) for name in self.columns])

    def batches(
        self, *, used: set[str], kept: list[str], reserved: Sequence[str] = OUTPUT_COLUMNS, rows: int | None = None
    ) -> Iterator[SourceRows]:
        with _readable(self.file), self._open() as stream:
            records = self._records(stream)
            next(records, None)
            for some in _blocks(records, lambda record: record.size, rows or ROWS):
                yield self._rows(some, used, kept)

    @contextmanager
    def _open(self) -> Iterator[io.TextIOWrapper]:
        with self.file.open() as raw, decompressed(raw, self.file.format.compression) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
            yield text
            text.detach()

    def _records(self, stream: io.TextIOWrapper) -> Iterator[_Record]:
        lines = _TextLines(stream)
        reader = csv.reader(lines, strict=True)
        try:
            for fields in reader:
                if fields:
                    yield _Record(reader.line_num, fields, lines.taken())
        except csv.Error as error:
            raise _refused(
                "invalid_csv", f"Source {self.file.uri} cannot be read as CSV at line {reader.line_num}: {error}."
            ) from error

    def _rows(self, records: list[_Record], used: set[str], kept: list[str]) -> SourceRows:
        empty: Sequence[str | None] = [None] * len(self.columns)
        rows: list[Sequence[str | None]] = []
        faults = {}
        for position, record in enumerate(records):
            if fault := self._fault(record.line, record.fields):
                faults[position] = fault
                rows.append(empty)
            else:
                rows.append(record.fields)
        columns = dict(zip(self.columns, zip(*rows, strict=True), strict=True))
        both = {name: pa.array(columns[name], pa.string()) for name in {*used, *kept} if name in columns}
        return SourceRows(
            _batch(both, kept, len(rows)), _batch(both, [n for n in both if n in used], len(rows)), faults
        )

    def _fault(self, line: int, record: list[str]) -> Fault | None:
        if len(record) != len(self.columns):
            return Fault(
                "ragged_line",
                f"The record that ends at line {line} has {len(record)} fields where the first line names "
                f"{len(self.columns)} columns.",
            )
        if not all(map(_is_utf8, record)):
            return Fault("invalid_utf8", f"The record that ends at line {line} is not UTF-8.")
        return None


class JsonlSource:
    """A file of JSON objects, one a line, in UTF-8. Blank lines are no rows."""

    fixed_columns = False

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.columns: list[str] = []
        self.schema: pa.Schema | None = None
        for _, line in next(self._blocks(), []):
            row = _object(0, line)
            if not isinstance(row, Fault):
                self.columns += [name for name in row if name not in self.columns]

    def batches(
        self, *, used: set[str], kept: list[str], reserved: Sequence[str] = OUTPUT_COLUMNS, rows: int | None = None
    ) -> Iterator[SourceRows]:
        with _readable(self.file):
            for lines in self._blocks(rows):
                yield self._rows(lines, reserved if kept == self.columns else ())

    def _blocks(self, rows: int | None = None) -> Iterator[list[tuple[int, bytes]]]:
        """The lines that are not blank with their numbers, some thousand at a time."""
        with self.file.open() as raw, decompressed(raw, self.file.format.compression) as inner:
            lines = ((number, line.strip()) for number, line in enumerate(_without_mark(inner), start=1))
            lines = ((number, line) for number, line in lines if line)
            yield from _blocks(lines, lambda line: len(line[1]), rows or ROWS)

    def _rows(self, lines: list[tuple[int, bytes]], reserved: Sequence[str]) -> SourceRows:
        values: list[dict[str, Any]] = []
        faults = {}
        for position, (number, line) in enumerate(lines):
            row = _object(number, line)
            if reserved and not isinstance(row, Fault):
                row = _clash(number, row, reserved) or row
            if isinstance(row, Fault):
                faults[position] = row
            values.append({} if isinstance(row, Fault) else row)
        texts = [None if position in faults else line for position, (_, line) in enumerate(lines)]
        staged = pa.record_batch([pa.array(texts, pa.large_binary())], names=[LINE])
        return SourceRows(staged, values, faults)


_READERS: Final[dict[str, type[ParquetSource] | type[CsvSource] | type[JsonlSource]]] = {
    "parquet": ParquetSource,
    "csv": CsvSource,
    "jsonl": JsonlSource,
}


def typed_lines(staged: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Staged JSON lines as typed columns; a line that could not be read has none."""
    if not schema.names:
        return staged.select([])  # a table made from a list of objects without fields would have no rows
    rows = [{} if line is None else msgspec.json.decode(line) for line in staged.column(0).to_pylist()]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _object(number: int, line: bytes) -> dict[str, Any] | Fault:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not _decodes(line):  # which of the two errors says so depends on msgspec's version
            return Fault("invalid_utf8", f"Line {number} is not UTF-8.")
        return Fault("invalid_json_line", f"Line {number} is not valid JSON: {error}.")
    except RecursionError:
        return Fault("invalid_json_line", f"Line {number} is nested too deeply.")
    if not isinstance(row, dict):
        return Fault("invalid_json_line", f"Line {number} holds {type(row).__name__}, not a JSON object.")
    return row


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _clash(number: int, row: dict[str, Any], reserved: Sequence[str]) -> Fault | None:
    """The fault of a line that is to be repeated whole and has a field of the output's name."""
    clash = [name for name in reserved if name in row]
    if not clash:
        return None
    return Fault("column_clash", f"Line {number} has {clash[0]!r}, which is the name of an output column.")


def _said(error: Exception) -> str:
    """An error's text, to go on with."""
    return str(error).rstrip(". ")


def _batch(columns: dict[str, pa.Array], names: Sequence[str], rows: int) -> pa.RecordBatch:
    """The named columns; of none of them, a batch that still has its number of rows."""
    if not names:
        return pa.record_batch([pa.nulls(rows)], names=[""]).select([])
    return pa.record_batch([columns[name] for name in names], names=list(names))


def _blocks(rows: Iterable[_T], size_of: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """Rows in blocks, by their number and their sizes."""
    waiting: list[_T] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += size_of(row)
        if len(waiting) >= most or size >= BLOCK_BYTES:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def _without_mark(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, without the mark of UTF-8 that some editors put before the first."""
    number = 1
    mark = codecs.BOM_UTF8
    while line := stream.readline(ROW_BYTES + 1):
        if len(line) > ROW_BYTES:
            raise RowTooLargeError(f"Line {number}")
        yield line.removeprefix(mark)
        number, mark = number + 1, b""


class _TextLines:
    """The lines of a stream, with the size in characters of those since the last look."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._number = 0
        self._size = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._size += len(line)
        if self._size > ROW_BYTES:
            raise RowTooLargeError(f"The record at line {self._number}")
        return line

    def taken(self) -> int:
        size, self._size = self._size, 0
        return size


def _is_utf8(text: str) -> bool:
    """Whether no byte had to be escaped when the text was read."""
    return text.isascii() or not any("\udc80" <= char <= "\udcff" for char in text)


def _check_names(uri: str, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise _refused("duplicate_column", f"Source {uri} has more than one column named {twice[0]!r}.")


def _refused(code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param="dataset.source")
