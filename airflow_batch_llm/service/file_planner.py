"""Planning a request file: checked whole, then staged as chunks, which one transaction then makes real.

Streams: never holds more than one chunk of requests in memory; that no ``custom_id`` stands twice is found by DuckDB,
which spills.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.service.plan_stage import ROWS_FILE, PlanStage
from airflow_batch_llm.service.request_file import MOST_ERRORS, RequestFile, RequestFileInvalidError
from airflow_batch_llm.service.work_database import open_database
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.wire import BatchError
from airflow_batch_llm.worker_wire import ResultLine, RowLine

ROW_GROUP: Final = 10_000
"""Rows in each row group of the staged ids: row number ``n`` is in group ``n // ROW_GROUP``."""
MEMORY: Final = "256MB"
"""What DuckDB may use before it spills to a temporary folder."""

_IDS: Final = pa.schema([("row", pa.int64()), ("line", pa.int64()), ("custom_id", pa.string())])


class _Id(NamedTuple):
    row: int
    line: int
    custom_id: str


@dataclass
class FilePlanner:
    """Stages the plan of one request file."""

    stage: PlanStage
    file: RequestFile
    done_before: Iterable[ResultLine] = ()
    """Results of the generation before this batch, which keeps those that are answers."""

    def plan(self) -> Plan:
        """Reads the file once. Raises :class:`RequestFileInvalidError` if anything is wrong with it."""
        self.stage.keep_answers(self.done_before)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ROWS_FILE
            with pq.ParquetWriter(path, _IDS, compression="zstd") as ids:
                for some in self._groups():
                    ids.write_batch(_ids(some), row_group_size=ROW_GROUP)
            self._check(path)
            self.stage.storage.put_file(f"{self.stage.prefix}/{ROWS_FILE}", path)
        self.stage.finish()
        return Plan(
            storage_key=self.stage.prefix,
            rows_total=self.file.rows,
            rows_done=self.stage.results_stored,
            rows_failed=0,
            chunks=self.stage.chunks,
            model=self.file.model,
        )

    def _groups(self) -> Iterator[list[_Id]]:
        """The ids of all requests, which are staged on the way: they may be long."""
        ids: list[_Id] = []
        for request in self.file.requests():
            if not self.file.errors and not self.stage.is_kept(request.row):  # else nothing of it will run
                self.stage.add_row(RowLine(request.row, request.body), request.tokens)
            ids.append(_Id(request.row, request.line, request.custom_id))
            if len(ids) == ROW_GROUP:
                yield ids
                ids = []
        if ids:
            yield ids

    def _check(self, ids: Path) -> None:
        errors = self.file.errors
        if len(errors) < MOST_ERRORS:
            errors = sorted([*errors, *_repeated(ids)], key=lambda error: error.line or 0)[:MOST_ERRORS]
        if errors:
            raise RequestFileInvalidError(errors)


def _ids(ids: list[_Id]) -> pa.RecordBatch:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*ids, strict=True), _IDS, strict=True)]
    return pa.record_batch(columns, schema=_IDS)


def _repeated(ids: Path) -> list[BatchError]:
    """The lines whose ``custom_id`` an earlier line has. Hashes are grouped first: they need less memory."""
    with open_database(ids.parent, memory=MEMORY, threads=1) as connection:
        found = connection.execute(
            """
            SELECT custom_id, list_sort(list(line))[:2] AS lines
            FROM read_parquet($path)
            WHERE hash(custom_id) IN (
                SELECT hash(custom_id) FROM read_parquet($path) GROUP BY 1 HAVING count(*) > 1
            )
            GROUP BY custom_id HAVING count(*) > 1
            ORDER BY lines[2] LIMIT $most
            """,
            {"path": str(ids), "most": MOST_ERRORS},
        ).fetchall()
    return [
        BatchError(
            code="duplicate_custom_id",
            message=f"`custom_id` {custom_id[:100]!r} stands on line {first} already.",
            line=second,
            param="custom_id",
        )
        for custom_id, (first, second) in found
    ]
