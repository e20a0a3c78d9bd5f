"""Assembling a table: results joined back to the staged rows by row number, in source order, exactly one each.

Holds a block of rows in memory, and one of results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.formats import FileFormat
from airflow_batch_llm.service.output_columns import RESULT, OutputColumns
from airflow_batch_llm.service.parts import CountsError, PartFile
from airflow_batch_llm.service.plan_stage import ROWS_FILE
from airflow_batch_llm.service.quarantine import FailingRows
from airflow_batch_llm.service.sources import LINE, ROWS, typed_lines
from airflow_batch_llm.service.staged_schema import STAGED_LINE
from airflow_batch_llm.service.table_planner import (
    FILES_FILE,
    SCHEMA_FILE,
    StagedFile,
    file_folder,
)
from airflow_batch_llm.service.table_results import TableResults
from airflow_batch_llm.service.target_writers import TargetWriter, open_writer
from airflow_batch_llm.storage.base import Storage

NO_CODE: Final = "no_code"
"""What a failed row is counted under that says no code."""


@dataclass
class Assembler:
    """Joins the results of one batch to its staged rows. :meth:`load` comes first, :meth:`close` last."""

    storage: Storage
    prefix: str
    parts: Iterable[PartFile]
    rows: int
    undone: RowStatus | None
    """What a row without a result is called; None where every row must have one."""
    output: OutputColumns
    folder: Path
    kept: list[str] | None = None
    """The fields of JSON lines that the target repeats; None for all."""
    failing: FailingRows | None = None
    """Gets a copy of the rows that failed, where the batch has a quarantine."""
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by status."""
    failures: Counter[str] = field(default_factory=Counter)
    """Rows that are not a success, by code."""

    def load(self) -> None:
        """Brings the results together. Raises :class:`CountsError` where rows are missing or doubled."""
        self._results = TableResults(
            self.storage, self.prefix, self.parts, self.rows, complete=self.undone is None, folder=self.folder
        )
        self._results.load()
        self._left = _Left(self._results.ordered())

    def close(self) -> None:
        self._results.close()

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
                if self.failing:
                    self.failing.begin(schema)
                for staged in self._staged(number, schema):
                    self._write(writer, staged)
                    rows += staged.num_rows
        finally:
            if writer:
                writer.close()
        return rows

    def check_all_written(self) -> None:
        """Raises :class:`CountsError` unless every row was written once."""
        if sum(self.counts.values()) != self.rows or not self._left.at_end():
            raise CountsError(f"{sum(self.counts.values())} target rows were written for {self.rows} source rows.")

    def write_index(self, path: Path, batch_id: str, at: float) -> int:
        """Writes the answers that this batch found into ``path``, for later batches, and gives how many there are."""
        return self._results.write_index(path, batch_id, at)

    def _write(self, writer: TargetWriter, staged: pa.RecordBatch) -> None:
        at = 0
        while at < staged.num_rows:
            results = self._left.take(staged.num_rows - at)
            rows, output = staged.slice(at, results.num_rows), self._output(results)
            writer.write(rows, output)
            if self.failing:
                self.failing.write(rows, output)
            at += results.num_rows

    def _output(self, results: pa.RecordBatch) -> pa.RecordBatch:
        """The output columns of the rows that have these results."""
        statuses = results.column("status")
        if statuses.null_count:
            if self.undone is None:
                raise CountsError(f"{statuses.null_count} rows have no result.")
            results = _ended(results, self.undone)
        self._count(results)
        return self.output.made(results)

    def _count(self, results: pa.RecordBatch) -> None:
        statuses = results.column("status")
        codes = results.column("code").filter(pc.not_equal(statuses, "success"))
        for counter, column in ((self.counts, statuses), (self.failures, codes)):
            for counted in column.value_counts().to_pylist():
                counter[counted["values"] or NO_CODE] += counted["counts"]

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
            for group in range(file.num_row_groups):  # which were blocks
                for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], use_threads=False):
                    staged = batch.select(names)
                    yield typed_lines(staged, schema) if must_type else staged


class _Left:
    """Results in row order that are taken off from the front."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = (batch for batch in batches if batch.num_rows)
        self._batch: pa.RecordBatch | None = None

    def at_end(self) -> bool:
        """Whether all were taken."""
        return self._batch is None and next(self._batches, None) is None

    def take(self, most: int) -> pa.RecordBatch:
        """The next results, at least one and at most ``most``."""
        batch = self._batch or next(self._batches, None)
        if batch is None:
            raise CountsError(f"Results of {most} rows are missing.")
        self._batch = batch.slice(most) if batch.num_rows > most else None
        return batch.slice(0, most)


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
