"""Reading a source table, some thousand rows at a time. Memory is bounded by those, never by the table.

A row that cannot be read is a row all the same: it keeps its number and gets a fault instead of values.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import OUTPUT_COLUMNS

ROWS: Final = 2_000
"""How many rows are read at a time: some megabytes of text."""

LINE: Final = "\0line"
"""The staged column of a JSONL source: the line as it was, so that a JSONL target can repeat it to the letter."""

csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be asked: a word for programs, a sentence for people."""

    code: str
    message: str


@dataclass
class SourceRows:
    """Consecutive rows: what templates may use of them, what the target repeats of them, what is wrong with them."""

    values: list[dict[str, Any]]
    staged: pa.RecordBatch
    faults: dict[int, Fault] = field(default_factory=dict)
    """By position in this batch."""

    def __len__(self) -> int:
        return len(self.values)


class Source(Protocol):
    """A table that can be read from its start, as often as needed."""

    columns: list[str]
    """The names of the columns; of a JSONL source, those of its first rows."""
    fixed_columns: bool
    """Whether no other columns can turn up later."""

    def batches(self, *, used: set[str], kept: list[str]) -> Iterator[SourceRows]:
        """All rows in order; ``used`` are the columns that templates need, ``kept`` those that the target repeats."""


def open_source(path: Path) -> Source:
    """The reader that the file's ending asks for. Raises :class:`InvalidRequestError` where it cannot be one."""
    if path.is_dir():
        raise _refused("source_is_folder", f"Source {path} is a folder. Name one .parquet, .jsonl or .csv file.")
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise _refused(
            "format_not_supported",
            f"Source {path} ends in {path.suffix or 'nothing'}; a source ends in .parquet, .jsonl or .csv.",
        )
    try:
        return kind(path)
    except FileNotFoundError as error:
        raise _refused("source_not_found", f"Source {path} does not exist.") from error
    except OSError as error:
        raise _refused("source_unreadable", f"Source {path} cannot be read: {error.strerror or error}.") from error
    except pa.ArrowException as error:
        raise _refused("source_unreadable", f"Source {path} is not a readable Parquet file: {error}.") from error


class ParquetSource:
    """A Parquet file. Its columns pass through in their own types."""

    fixed_columns = True

    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            self.schema = file.schema_arrow
        self.columns = list(self.schema.names)
        _check_names(path, self.columns)

    def batches(self, *, used: set[str], kept: list[str]) -> Iterator[SourceRows]:
        needed = [name for name in self.columns if name in used or name in kept]
        for batch in self._read(needed):
            values, faults = _python_values(batch.select([name for name in needed if name in used]))
            yield SourceRows(values or [{} for _ in range(batch.num_rows)], batch.select(kept), faults)

    def _read(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(self._path) as file:
                yield from file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's trouble, not the file's: it may pass
            raise _refused("source_unreadable", f"Source {self._path} is damaged: {error}.") from error


class CsvSource:
    """A CSV file in UTF-8 whose first line names the columns. Every value is text, to the letter: ``007`` stays so."""

    fixed_columns = True

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as stream:
            header = next(self._records(stream), None)
        if header is None:
            raise _refused("empty_source", f"Source {path} is empty: it has not even a line of column names.")
        self.columns = header[1]
        if any("\udc80" <= char <= "\udcff" for name in self.columns for char in name):
            raise _refused("invalid_utf8", f"Source {path} is not UTF-8: its first line has other bytes.")
        _check_names(path, self.columns)

    def batches(self, *, used: set[str], kept: list[str]) -> Iterator[SourceRows]:
        with self._open() as stream:
            records = self._records(stream)
            next(records, None)
            while some := list(islice(records, ROWS)):
                yield self._rows(some, kept)

    def _open(self) -> Any:
        return self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _records(self, stream: Any) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(stream, strict=True)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            raise _refused(
                "invalid_csv", f"Source {self._path} cannot be read as CSV at line {reader.line_num}: {error}."
            ) from error

    def _rows(self, records: list[tuple[int, list[str]]], kept: list[str]) -> SourceRows:
        values: list[dict[str, Any]] = []
        faults = {}
        for position, (line, record) in enumerate(records):
            if fault := self._fault(line, record):
                faults[position] = fault
                values.append({})
            else:
                values.append(dict(zip(self.columns, record, strict=True)))
        schema = pa.schema([(name, pa.string()) for name in kept])
        columns = [pa.array([row.get(name) for row in values], pa.string()) for name in kept]
        return SourceRows(values, pa.record_batch(columns, schema=schema), faults)

    def _fault(self, line: int, record: list[str]) -> Fault | None:
        if len(record) != len(self.columns):
            return Fault(
                "ragged_line",
                f"The record that ends at line {line} has {len(record)} fields where the first line names "
                f"{len(self.columns)} columns.",
            )
        if any("\udc80" <= char <= "\udcff" for value in record for char in value):
            return Fault("invalid_utf8", f"The record that ends at line {line} is not UTF-8.")
        return None


class JsonlSource:
    """A file of JSON objects, one a line, in UTF-8. Blank lines are no rows."""

    fixed_columns = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.columns: list[str] = []
        for _, line in next(self._blocks(), []):
            row = _object(0, line)
            if not isinstance(row, Fault):
                self.columns += [name for name in row if name not in self.columns]

    def batches(self, *, used: set[str], kept: list[str]) -> Iterator[SourceRows]:
        for lines in self._blocks():
            yield self._rows(lines, repeats_all=kept == self.columns)

    def _blocks(self) -> Iterator[list[tuple[int, bytes]]]:
        """The lines that are not blank with their numbers, some thousand at a time."""
        with self._path.open("rb") as stream:
            if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                stream.seek(0)
            lines = ((number, line.strip()) for number, line in enumerate(stream, start=1))
            lines = ((number, line) for number, line in lines if line)
            while some := list(islice(lines, ROWS)):
                yield some

    def _rows(self, lines: list[tuple[int, bytes]], *, repeats_all: bool) -> SourceRows:
        values: list[dict[str, Any]] = []
        faults = {}
        for position, (number, line) in enumerate(lines):
            row = _object(number, line)
            if repeats_all and not isinstance(row, Fault):
                row = _clash(number, row) or row
            if isinstance(row, Fault):
                faults[position] = row
            values.append({} if isinstance(row, Fault) else row)
        texts = [None if position in faults else line for position, (_, line) in enumerate(lines)]
        staged = pa.record_batch([pa.array(texts, pa.large_binary())], names=[LINE])
        return SourceRows(values, staged, faults)


_READERS: Final[dict[str, type[ParquetSource] | type[CsvSource] | type[JsonlSource]]] = {
    ".parquet": ParquetSource,
    ".csv": CsvSource,
    ".jsonl": JsonlSource,
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
    except UnicodeDecodeError:
        return Fault("invalid_utf8", f"Line {number} is not UTF-8.")
    except msgspec.DecodeError as error:
        return Fault("invalid_json_line", f"Line {number} is not valid JSON: {error}.")
    except RecursionError:
        return Fault("invalid_json_line", f"Line {number} is nested too deeply.")
    if not isinstance(row, dict):
        return Fault("invalid_json_line", f"Line {number} holds {type(row).__name__}, not a JSON object.")
    return row


def _clash(number: int, row: dict[str, Any]) -> Fault | None:
    """The fault of a line that is to be repeated whole and has a field of the output's name."""
    clash = [name for name in OUTPUT_COLUMNS if name in row]
    if not clash:
        return None
    return Fault("column_clash", f"Line {number} has {clash[0]!r}, which is the name of an output column.")


def _python_values(batch: pa.RecordBatch) -> tuple[list[dict[str, Any]], dict[int, Fault]]:
    """The rows as Python has them; a value that it cannot hold (nanoseconds, the year 30000) is that row's fault."""
    try:
        return batch.to_pylist(), {}
    except (ValueError, OverflowError):
        values: list[dict[str, Any]] = []
        faults = {}
        for position in range(batch.num_rows):
            try:
                values += batch.slice(position, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                values.append({})
                faults[position] = Fault("not_text", f"A value cannot be written into a prompt: {error}.")
        return values, faults


def _check_names(path: Path, columns: list[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise _refused("duplicate_column", f"Source {path} has more than one column named {twice[0]!r}.")


def _refused(code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param="dataset.source")
