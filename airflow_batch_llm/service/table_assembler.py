"""Assembling a table: the parts of a batch become one target row per source row, in source order.

Streams: results are sorted by DuckDB, which spills, and joined to the staged rows some thousand at a time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.parts import CountsError, PartFile, stored_results
from airflow_batch_llm.service.plan_stage import ROWS_FILE
from airflow_batch_llm.service.sources import LINE, ROWS, typed_lines
from airflow_batch_llm.service.table_planner import SCHEMA_FILE, STAGED_LINE
from airflow_batch_llm.service.targets import OUTPUT_SCHEMA, open_writer, output_values
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.worker_wire import ResultLine

SORT_MEMORY: Final = "256MB"
"""What DuckDB may use before it spills to a temporary folder."""

_STORED: Final = pa.schema([("row", pa.int64()), *OUTPUT_SCHEMA])


@dataclass
class Assembler:
    """Joins the results of one batch to its staged rows."""

    storage: Storage
    prefix: str
    parts: Sequence[PartFile]
    rows: int
    undone: RowStatus | None
    """What a row without a result is called; None where every row must have one."""
    kept: list[str] | None = None
    """The fields of JSON lines that the target repeats; None for all."""
    counts: Counter[str] = field(default_factory=Counter)

    def assemble(self, path: Path, suffix: str) -> None:
        """Writes the target into ``path``. Raises :class:`CountsError` where rows are missing or doubled."""
        schema = self._schema()
        writer = open_writer(path, suffix, schema, kept=self.kept)
        try:
            with tempfile.TemporaryDirectory() as folder:
                results = self._sorted_results(Path(folder))
                for start, staged in self._staged(schema, Path(folder)):
                    writer.write(staged, self._output(results, start, staged.num_rows))
        finally:
            writer.close()
        if sum(self.counts.values()) != self.rows:
            raise CountsError(f"{sum(self.counts.values())} target rows were written for {self.rows} source rows.")

    def _schema(self) -> pa.Schema:
        with self.storage.open(f"{self.prefix}/{SCHEMA_FILE}") as stream:
            return pa.ipc.read_schema(pa.py_buffer(stream.read()))

    def _staged(self, schema: pa.Schema, folder: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The staged rows in order, in the columns that the target repeats, each batch with its first row number."""
        start = 0
        with self.storage.open(f"{self.prefix}/{ROWS_FILE}") as stream, pq.ParquetFile(stream) as file:
            names = file.schema_arrow.names[1:]
            must_type = names == [STAGED_LINE] and schema.names != [LINE]
            for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
                staged = batch.select(names)
                yield start, typed_lines(staged, schema) if must_type else staged
                start += batch.num_rows

    def _sorted_results(self, folder: Path) -> _Results:
        sorter = duckdb.connect(
            folder / "results.duckdb", config={"memory_limit": SORT_MEMORY, "temp_directory": str(folder), "threads": 1}
        )
        sorter.from_arrow(_STORED.empty_table()).create("results")
        for batch in self._stored_results():
            sorter.from_arrow(batch).insert_into("results")
        counted, distinct = sorter.sql("SELECT count(*), count(DISTINCT row) FROM results").fetchall()[0]
        if distinct != counted or counted > self.rows or (self.undone is None and counted != self.rows):
            raise CountsError(
                f"{counted} results for {distinct} different rows were committed, but the batch has {self.rows} rows."
            )
        return _Results(sorter.sql("SELECT * FROM results ORDER BY row").to_arrow_reader(ROWS))

    def _stored_results(self) -> Iterator[pa.Table]:
        for lines in stored_results(self.storage, self.prefix, self.parts):
            yield _table(lines)

    def _output(self, results: _Results, start: int, rows: int) -> pa.RecordBatch:
        """The output columns of ``rows`` rows from row number ``start`` on."""
        found = results.take(start + rows)
        columns: dict[str, list[Any]] = {name: [None] * rows for name in OUTPUT_SCHEMA.names}
        columns["llm_status"] = [self.undone] * rows
        for row, *values in found:
            for name, value in zip(OUTPUT_SCHEMA.names, values, strict=True):
                columns[name][row - start] = value
        self.counts.update(columns["llm_status"])
        if self.undone is not None:
            why = f"batch_{self.undone}: The batch was {self.undone} before this row was done."
            columns["llm_error"] = [
                why if status == self.undone else error
                for status, error in zip(columns["llm_status"], columns["llm_error"], strict=True)
            ]
        return pa.record_batch([pa.array(columns[f.name], f.type) for f in OUTPUT_SCHEMA], schema=OUTPUT_SCHEMA)


class _Results:
    """Sorted results that are taken off from the front."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._rows = (row for batch in reader for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        self._next = next(self._rows, None)

    def take(self, end: int) -> Iterator[tuple[Any, ...]]:
        """The results of the rows before row number ``end`` that were not taken yet."""
        while self._next is not None and self._next[0] < end:
            yield self._next
            self._next = next(self._rows, None)


def _table(lines: list[ResultLine]) -> pa.Table:
    columns = zip(*((line.row, *output_values(line)) for line in lines), strict=True)
    arrays = [pa.array(column, f.type) for column, f in zip(columns, _STORED, strict=True)]
    return pa.table(arrays, schema=_STORED) if arrays else _STORED.empty_table()
