"""Assembling a table: results joined back to the staged rows by row number, in source order, exactly one each.

Sorts and joins in a DuckDB file with bounded memory; it spills to that file's folder.
"""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.asked_rows import READ_ROWS
from airflow_batch_llm.service.formats import FileFormat
from airflow_batch_llm.service.output_columns import RESULT, OutputColumns
from airflow_batch_llm.service.parts import CountsError, PartFile, stored_contents
from airflow_batch_llm.service.plan_stage import ROWS_FILE
from airflow_batch_llm.service.result_index import GROUP_ROWS, INDEX, KNOWN_COLUMNS
from airflow_batch_llm.service.sources import LINE, ROWS, typed_lines
from airflow_batch_llm.service.staged_schema import STAGED_LINE
from airflow_batch_llm.service.table_planner import (
    COPIES_FILE,
    FILES_FILE,
    KEYS_FILE,
    SCHEMA_FILE,
    StagedFile,
    file_folder,
)
from airflow_batch_llm.service.target_writers import TargetWriter, open_writer
from airflow_batch_llm.service.work_database import open_database, quoted
from airflow_batch_llm.storage.base import Storage

_TYPES: Final = {
    pa.int64(): "BIGINT",
    pa.string(): "VARCHAR",
    pa.float64(): "DOUBLE",
    pa.list_(pa.string()): "VARCHAR[]",
}


@dataclass
class Assembler:
    """Joins the results of one batch to its staged rows. :meth:`load` comes first, :meth:`close` last."""

    storage: Storage
    prefix: str
    parts: Sequence[PartFile]
    rows: int
    undone: RowStatus | None
    """What a row without a result is called; None where every row must have one."""
    output: OutputColumns
    folder: Path
    kept: list[str] | None = None
    """The fields of JSON lines that the target repeats; None for all."""
    counts: Counter[str] = field(default_factory=Counter)

    def load(self) -> None:
        """Brings the results together. Raises :class:`CountsError` where rows are missing or doubled."""
        self._database = open_database(self.folder)
        columns = ", ".join(f'"{column.name}" {_TYPES[column.type]}' for column in RESULT)
        self._database.execute(f"CREATE TEMP TABLE results ({columns})")
        for content in stored_contents(self.storage, self.prefix, self.parts):
            self._database.register("part", result_table(content))
            self._database.execute("INSERT INTO results SELECT * FROM part")
            self._database.unregister("part")
        self._has_copies = self._fetch(COPIES_FILE)
        counted, distinct = self._one('SELECT count(*), count(DISTINCT "row") FROM results')
        copies = pq.read_metadata(self.folder / COPIES_FILE).num_rows if self._has_copies else 0
        if (
            distinct != counted
            or counted + copies > self.rows
            or (self.undone is None and counted + copies != self.rows)
        ):
            raise CountsError(
                f"{counted} results for {distinct} different rows were committed and {copies} rows equal another one, "
                f"but the batch has {self.rows} rows."
            )
        self._results = _Results(self._joined(all_there=counted == self.rows))

    def close(self) -> None:
        self._database.close()

    @property
    def files(self) -> list[StagedFile]:
        with self.storage.open(f"{self.prefix}/{FILES_FILE}") as stream:
            return msgspec.json.decode(stream.read(), type=list[StagedFile])

    def assemble(self, numbers: Sequence[int], path: Path, form: FileFormat) -> int:
        """Writes the rows of the staged files with these numbers into ``path``, and gives how many there are.

        Files are taken in their order, each once.
        """
        writer: TargetWriter | None = None
        rows = 0
        try:
            for number in numbers:
                schema = self._schema(number)
                writer = writer or open_writer(path, form, schema, self.output.schema, kept=self.kept)
                for staged in self._staged(number, schema):
                    writer.write(staged, self._output(staged.num_rows))
                    rows += staged.num_rows
        finally:
            if writer:
                writer.close()
        return rows

    def check_all_written(self) -> None:
        """Raises :class:`CountsError` unless every row was written once."""
        if sum(self.counts.values()) != self.rows or not self._results.at_end():
            raise CountsError(f"{sum(self.counts.values())} target rows were written for {self.rows} source rows.")

    def write_index(self, path: Path, batch_id: str, at: float) -> int:
        """Writes the answers that this batch found into ``path``, for later batches, and gives how many there are."""
        if not self._fetch(KEYS_FILE):
            return 0
        listed = ", ".join(f'r."{name}"' for name in KNOWN_COLUMNS)
        found = self._database.sql(
            f'SELECT k."key", ? AS batch, ?::DOUBLE AS "at", {listed} FROM results r '  # noqa: S608 (our own names)
            f'JOIN read_parquet({self._path(KEYS_FILE)}) k ON k."row" = r."row" '
            "WHERE r.status = 'success' ORDER BY k.\"key\"",
            params=[batch_id, at],
        ).to_arrow_reader(GROUP_ROWS)
        rows = 0
        with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
            for batch in found:
                writer.write_batch(batch.cast(INDEX))
                rows += batch.num_rows
        return rows

    def _joined(self, *, all_there: bool) -> Iterator[pa.RecordBatch]:
        """A result for every row, in order; of a row that has none, with nulls."""
        query = 'FROM results ORDER BY "row"'
        if not all_there:
            listed = ", ".join(f'r."{name}"' for name in RESULT.names[1:])
            of = 'n."row"'
            copies = ""
            if self._has_copies:
                copies = f'LEFT JOIN read_parquet({self._path(COPIES_FILE)}) c ON c."row" = n."row"'
                of = 'coalesce(c."of", n."row")'
            query = (
                f'SELECT n."row", {listed} FROM range({self.rows}) n("row") {copies} '  # noqa: S608 (our own names)
                f'LEFT JOIN results r ON r."row" = {of} ORDER BY n."row"'
            )
        for batch in self._database.sql(query).to_arrow_reader(READ_ROWS):
            yield batch.cast(RESULT)

    def _output(self, rows: int) -> pa.RecordBatch:
        """The output columns of the next ``rows`` rows."""
        results = self._results.take(rows)
        statuses = results.column("status")
        if statuses.null_count:
            if self.undone is None:
                raise CountsError(f"{statuses.null_count} rows have no result.")
            results = _ended(results, self.undone)
        for counted in results.column("status").value_counts().to_pylist():
            self.counts[counted["values"]] += counted["counts"]
        return self.output.made(results)

    def _schema(self, number: int) -> pa.Schema:
        with self.storage.open(f"{self.prefix}/{file_folder(number)}/{SCHEMA_FILE}") as stream:
            return pa.ipc.read_schema(pa.py_buffer(stream.read()))

    def _staged(self, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The staged rows in order, in the columns that the target repeats."""
        with (
            self.storage.open(f"{self.prefix}/{file_folder(number)}/{ROWS_FILE}") as stream,
            pq.ParquetFile(stream) as file,
        ):
            names = file.schema_arrow.names[1:]
            must_type = names == [STAGED_LINE] and schema.names != [LINE]
            for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
                staged = batch.select(names)
                yield typed_lines(staged, schema) if must_type else staged

    def _fetch(self, name: str) -> bool:
        """Brings a file of the plan to where DuckDB may read it; False if the plan has none."""
        try:
            with self.storage.open(f"{self.prefix}/{name}") as stream, (self.folder / name).open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except FileNotFoundError:
            (self.folder / name).unlink(missing_ok=True)
            return False
        return True

    def _path(self, name: str) -> str:
        return quoted(self.folder / name)

    def _one(self, query: str) -> tuple[Any, ...]:
        return self._database.execute(query).fetchall()[0]


class _Results:
    """Results in row order that are taken off from the front."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def at_end(self) -> bool:
        """Whether all were taken."""
        return self._rows == 0 and not any(batch.num_rows for batch in self._batches)

    def take(self, rows: int) -> pa.RecordBatch:
        """The next ``rows`` results."""
        while self._rows < rows:
            batch = next(self._batches, None)
            if batch is None:
                raise CountsError(f"Results of {rows - self._rows} rows are missing.")
            self._waiting.append(batch)
            self._rows += batch.num_rows
        table = pa.Table.from_batches(self._waiting, schema=RESULT).combine_chunks()
        left = table.slice(rows)
        self._waiting = left.to_batches()
        self._rows = left.num_rows
        taken = table.slice(0, rows).to_batches()
        return taken[0] if taken else RESULT.empty_table().to_batches()[0]


def _ended(results: pa.RecordBatch, undone: RowStatus) -> pa.RecordBatch:
    """The results with what is to be said of the rows that have none."""
    missing = pc.is_null(results.column("status"))
    said = {
        "status": str(undone),
        "code": f"batch_{undone}",
        "error": f"The batch was {undone} before this row was done.",
    }
    columns = [
        pc.if_else(missing, pa.scalar(said[name], pa.string()), results.column(name))
        if name in said
        else results.column(name)
        for name in RESULT.names
    ]
    return pa.record_batch(columns, schema=RESULT)


def result_table(lines: bytes) -> pa.Table:
    """The results that a part's lines are."""
    try:
        return pa_json.read_json(
            io.BytesIO(lines),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=pa_json.ParseOptions(explicit_schema=RESULT, unexpected_field_behavior="ignore"),
        ).select(RESULT.names)
    except pa.ArrowException as error:
        raise CountsError(f"A part cannot be read: {error}.") from error
