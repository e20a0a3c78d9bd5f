"""Writers of targets, one a format. They take rows in source order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

import msgspec
import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from airflow_batch_llm.service.formats import FileFormat, compressed
from airflow_batch_llm.service.sources import LINE

GROUP_BYTES: Final = 32 << 20
"""About how much of a Parquet file goes into one row group, before it is compressed: held in memory until then."""


class TargetWriter(Protocol):
    """Takes rows in source order: what was staged of them, and the output columns beside it."""

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


class ParquetWriter:
    """Parquet, compressed inside. The source's columns keep their types."""

    def __init__(self, path: Path, schema: pa.Schema, output: pa.Schema, compression: str) -> None:
        self._schema = pa.schema([*schema, *output])
        self._writer = pq.ParquetWriter(path, self._schema, compression=compression)
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        batch = pa.record_batch([*staged.columns, *output.columns], schema=self._schema)
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, schema=self._schema)
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting, self._bytes = [], 0


class CsvWriter:
    """CSV in UTF-8 with a line of names. Null is an empty field, an empty text is ``""``."""

    def __init__(self, path: Path, schema: pa.Schema, output: pa.Schema, compression: str) -> None:
        self._schema = pa.schema([*schema, *output])
        self._stack = ExitStack()
        file = self._stack.enter_context(path.open("wb"))
        stream = self._stack.enter_context(compressed(file, compression))
        self._writer = self._stack.enter_context(pa_csv.CSVWriter(stream, self._schema))

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        self._writer.write_batch(pa.record_batch([*staged.columns, *output.columns], schema=self._schema))

    def close(self) -> None:
        self._stack.close()


class JsonlWriter:
    """JSON objects, one a line. The fields of a JSONL source are repeated to the letter."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str, *, kept: list[str] | None = None) -> None:
        self._stack = ExitStack()
        self._stream = self._stack.enter_context(compressed(self._stack.enter_context(path.open("wb")), compression))
        self._names = schema.names
        self._kept = None if kept is None else set(kept)

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        rows = self._lines(staged) if self._names == [LINE] else self._objects(staged)
        for start, added in zip(rows, output.to_pylist(), strict=True):
            self._stream.write(_joined(start, orjson.dumps(added)))

    def close(self) -> None:
        self._stack.close()

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


def open_writer(
    path: Path, form: FileFormat, schema: pa.Schema, output: pa.Schema, *, kept: list[str] | None
) -> TargetWriter:
    """A writer into ``path``: the columns of ``schema``, then those of ``output``.

    :param kept: of JSON lines that are repeated, the fields to repeat; None for all.
    """
    if form.kind == "jsonl":
        return JsonlWriter(path, schema, form.compression, kept=kept)
    kind = CsvWriter if form.kind == "csv" else ParquetWriter
    return kind(path, schema, output, form.compression)


def _joined(start: bytes, added: bytes) -> bytes:
    """Two JSON objects as one line."""
    head = start.rstrip()[:-1].rstrip()
    return (head if head == b"{" else head + b",") + added[1:] + b"\n"
