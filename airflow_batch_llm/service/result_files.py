"""Writing the results of a request file: the output file, the error file, and an index of both by row number.

Streams: results are sorted by DuckDB, which spills, their long texts beside it, and written line by line.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.models import FilePurpose, RowStatus
from airflow_batch_llm.service.file_planner import ROW_GROUP
from airflow_batch_llm.service.parts import CountsError, PartFile, stored_results
from airflow_batch_llm.service.plan_stage import ROWS_FILE
from airflow_batch_llm.service.spool import Spool
from airflow_batch_llm.service.work_database import open_database
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.files import StoredFile
from airflow_batch_llm.worker_wire import NO_RESPONSE, ResultLine

SORT_MEMORY: Final = "256MB"
"""What DuckDB may use before it spills to a temporary folder."""
INDEX_FILE: Final = "index.parquet"

INDEX: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("status", pa.string()),
        ("failed", pa.bool_()),
        ("offset", pa.int64()),
        ("bytes", pa.int32()),
    ]
)
"""Where each row's line is: in the error file if ``failed``, else in the output file."""

_SORTED: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("status", pa.string()),
        ("status_code", pa.int16()),
        ("response", pa.large_binary()),
        ("code", pa.string()),
        ("error", pa.string()),
    ]
)
_TEXTS: Final = ("response", "error")
"""The columns that may have long texts."""
_NOT_DONE: Final = {
    RowStatus.CANCELLED: ("batch_cancelled", "This request could not be executed before the batch was cancelled."),
    RowStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window or the deadline of the batch.",
    ),
}


def index_key(result_file_key: str) -> str:
    """Where the index lies that goes with an output or error file."""
    return str(PurePosixPath(result_file_key).with_name(INDEX_FILE))


def result_line(batch_id: str, custom_id: str, result: ResultLine) -> bytes:
    """One line of an output or error file, in OpenAI's two shapes: an HTTP answer, or an error without one."""
    if not result.response:
        answer, error = b"null", msgspec.json.encode({"code": result.code, "message": result.error})
    else:
        request_id = msgspec.json.encode(f"{batch_id}-{result.row}")
        code = result.status_code or 0
        answer = b'{"status_code":%d,"request_id":%b,"body":%b}' % (code, request_id, bytes(result.response))
        error = b"null"
    line_id = f"batch_req_{batch_id.removeprefix('batch_')}_{result.row}".encode()
    name = msgspec.json.encode(custom_id)
    return b'{"id":"%b","custom_id":%b,"response":%b,"error":%b}\n' % (line_id, name, answer, error)


@dataclass
class ResultFiles:
    """Writes the result files of one batch below ``prefix``; each stands whole or not at all."""

    storage: Storage
    batch_id: str
    plan_prefix: str
    prefix: str
    parts: Iterable[PartFile]
    rows: int
    undone: RowStatus | None
    """What a row without a result is called; None where every row must have one."""
    counts: Counter[str] = field(default_factory=Counter)

    def write(self, *, expires_in: float, now: float) -> tuple[StoredFile | None, StoredFile | None]:
        """Writes output and error file; one that would be empty is None, and nothing of it stays in storage.

        Raises :class:`CountsError` where rows are missing or doubled.
        """
        with tempfile.TemporaryDirectory() as folder, ExitStack() as open_files:
            output = _Lines(open_files.enter_context(self.storage.create(self._key("output"))))
            errors = _Lines(open_files.enter_context(self.storage.create(self._key("error"))))
            index = Path(folder) / INDEX_FILE
            self._write_lines(Path(folder), index, output, errors)
            if sum(self.counts.values()) != self.rows:
                raise CountsError(f"{sum(self.counts.values())} result lines were written for {self.rows} requests.")
            self.storage.put_file(f"{self.prefix}/{INDEX_FILE}", index)
        return (
            self._stored("output", output, now, expires_in),
            self._stored("error", errors, now, expires_in),
        )

    def _write_lines(self, folder: Path, index: Path, output: _Lines, errors: _Lines) -> None:
        with Spool(folder / "long_texts") as spool:
            self._write_sorted(self._sorted(folder, spool), index, output, errors)

    def _write_sorted(self, results: _Sorted, index: Path, output: _Lines, errors: _Lines) -> None:
        with pq.ParquetWriter(index, INDEX, compression="zstd") as writer:
            for ids in self._ids():
                places = []
                for row, custom_id in ids:
                    result = results.of(row) or self._not_done(row)
                    failed = result.status != "success"
                    place = (errors if failed else output).write(result_line(self.batch_id, custom_id, result))
                    places.append((row, result.status, failed, *place))
                self.counts.update(place[1] for place in places)
                columns = [pa.array(column, f.type) for column, f in zip(zip(*places, strict=True), INDEX, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=INDEX), row_group_size=ROW_GROUP)

    def _ids(self) -> Iterator[list[tuple[int, str]]]:
        with self.storage.open(f"{self.plan_prefix}/{ROWS_FILE}") as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=["row", "custom_id"], use_threads=False):
                yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def _sorted(self, folder: Path, spool: Spool) -> _Sorted:
        sorter = open_database(folder, memory=SORT_MEMORY, threads=1)
        sorter.from_arrow(_SORTED.empty_table()).create("results")
        for lines in stored_results(self.storage, self.plan_prefix, self.parts):
            sorter.from_arrow(_table(lines, spool)).insert_into("results")
        counted, distinct = sorter.sql("SELECT count(*), count(DISTINCT row) FROM results").fetchall()[0]
        if distinct != counted or counted > self.rows or (self.undone is None and counted != self.rows):
            raise CountsError(
                f"{counted} results for {distinct} different rows were committed, but the batch has {self.rows} rows."
            )
        batches = sorter.sql("SELECT * FROM results ORDER BY row").to_arrow_reader(1_000)
        return _Sorted(piece for batch in batches for piece in spool.pieces(batch.cast(_SORTED), _TEXTS))

    def _not_done(self, row: int) -> ResultLine:
        if self.undone is None:
            raise CountsError(f"Row {row} has no result. Nothing was published.")
        code, message = _NOT_DONE[self.undone]
        return ResultLine(row, self.undone, code=code, error=message)  # type: ignore[arg-type]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}.jsonl"

    def _stored(self, name: str, lines: _Lines, now: float, expires_in: float) -> StoredFile | None:
        if lines.bytes == 0:
            self.storage.delete(self._key(name))
            return None
        return StoredFile(
            id=f"file-{uuid.uuid4().hex}",
            purpose=FilePurpose.BATCH_OUTPUT,
            filename=f"{self.batch_id}_{name}.jsonl",
            bytes=lines.bytes,
            sha256=lines.digest.hexdigest(),
            storage_key=self._key(name),
            created_at=now,
            expires_at=now + expires_in,
        )


class _Lines:
    """A file that is written line by line, with its size and hash."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0
        self.digest = hashlib.sha256()

    def write(self, line: bytes) -> tuple[int, int]:
        """Appends a line; gives its offset and its length."""
        offset = self.bytes
        self._stream.write(line)
        self.digest.update(line)
        self.bytes += len(line)
        return offset, len(line)


class _Sorted:
    """Results by row number, taken off from the front."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._rows = (row for batch in batches for row in zip(*(c.to_pylist() for c in batch.columns), strict=True))
        self._next: tuple[Any, ...] | None = next(self._rows, None)

    def of(self, row: int) -> ResultLine | None:
        """The result of a row; rows are asked for in order."""
        if self._next is None or self._next[0] != row:
            return None
        _, status, status_code, response, code, error = self._next
        self._next = next(self._rows, None)
        raw = NO_RESPONSE if response is None else msgspec.Raw(response)
        return ResultLine(row, status, code=code, error=error, status_code=status_code, response=raw)


def _table(lines: list[ResultLine], spool: Spool) -> pa.Table:
    columns = [
        [line.row for line in lines],
        [line.status for line in lines],
        [line.status_code for line in lines],
        [bytes(line.response) if line.response else None for line in lines],
        [line.code for line in lines],
        [line.error for line in lines],
    ]
    arrays = [pa.array(column, f.type) for column, f in zip(columns, _SORTED, strict=True)]
    for name in _TEXTS:
        at = _SORTED.get_field_index(name)
        arrays[at] = spool.shortened(arrays[at])
    return pa.table(arrays, schema=_SORTED)
