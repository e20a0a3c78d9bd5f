"""The results of a table's rows, brought into the order of the rows by a database with bounded memory."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from airflow_batch_llm.service.long_answers import restored, shortened, sorted_schema
from airflow_batch_llm.service.output_columns import RESULT
from airflow_batch_llm.service.parts import CountsError, PartFile, stored_contents
from airflow_batch_llm.service.result_index import INDEX, KNOWN_COLUMNS, write_index
from airflow_batch_llm.service.spool import Spool
from airflow_batch_llm.service.table_planner import COPIES_FILE, KEYS_FILE
from airflow_batch_llm.service.work_database import open_database, quoted
from airflow_batch_llm.storage.base import Storage

READ_ROWS: Final = 16_384


@dataclass
class TableResults:
    """The results of one batch. :meth:`load` comes first, :meth:`close` last."""

    storage: Storage
    prefix: str
    parts: Iterable[PartFile]
    rows: int
    complete: bool
    """Whether every row must have one."""
    folder: Path
    _database: duckdb.DuckDBPyConnection = field(init=False)
    _spool: Spool = field(init=False)
    _counted: int = 0
    _has_copies: bool = False

    def load(self) -> None:
        """Brings the results together. Raises :class:`CountsError` where rows are missing or doubled."""
        self._database = open_database(self.folder)
        self._spool = Spool(self.folder / "long_texts")
        self._database.from_arrow(sorted_schema(RESULT).empty_table()).create("results")
        for content in stored_contents(self.storage, self.prefix, self.parts):
            self._add(content)
        self._has_copies = self._fetch(COPIES_FILE)
        self._counted, distinct = self._one('SELECT count(*), count(DISTINCT "row") FROM results')
        copies = pq.read_metadata(self.folder / COPIES_FILE).num_rows if self._has_copies else 0
        known = self._counted + copies
        if distinct != self._counted or known > self.rows or (self.complete and known != self.rows):
            raise CountsError(
                f"{self._counted} results for {distinct} different rows were committed and {copies} rows equal another "
                f"one, but the batch has {self.rows} rows."
            )

    def close(self) -> None:
        self._database.close()
        self._spool.close()

    def ordered(self) -> Iterator[pa.RecordBatch]:
        """A result for every row, in order, of :data:`RESULT`; of a row that has none, with nulls."""
        query = 'FROM results ORDER BY "row"'
        if self._counted != self.rows:
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
            yield from restored(batch, self._spool, RESULT)

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
        )
        batches = found.to_arrow_reader(READ_ROWS)
        return write_index(path, (piece for batch in batches for piece in restored(batch, self._spool, INDEX)))

    def _add(self, content: bytes) -> None:
        for batch in result_table(content).combine_chunks().to_batches():
            self._database.from_arrow(shortened(batch, self._spool)).insert_into("results")

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


def result_table(lines: bytes) -> pa.Table:
    """The results that a part's lines are. Raises :class:`CountsError` where a line is none."""
    try:
        found = pa_json.read_json(
            io.BytesIO(lines),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=pa_json.ParseOptions(explicit_schema=RESULT, unexpected_field_behavior="ignore"),
        ).select(RESULT.names)
    except pa.ArrowException as error:
        raise CountsError(f"A part cannot be read: {error}.") from error
    written = lines.count(b"\n")
    if found.num_rows != written:
        raise CountsError(f"A part has {found.num_rows} results in {written} lines.")
    return found
