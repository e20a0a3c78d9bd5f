"""A finished table's rows, read from the target from any row on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.service.sources import ROWS
from airflow_batch_llm.service.targets import read_manifest
from airflow_batch_llm.wire import ResultRow


def target_results(manifest: Mapping[str, Any], first: int, offset: int) -> Iterator[tuple[str, ResultRow]]:
    """The target's rows from number ``first`` on, each with a cursor; ``offset`` is where that row's bytes begin.

    Raises :class:`NotFoundError` where the target is gone or belongs to another batch by now.
    """
    target = Path(manifest["files"][0]["uri"])
    standing = read_manifest(target)
    if standing is None or standing.batch_id != manifest["batch_id"] or not target.exists():
        raise NotFoundError(
            f"Target {target} of batch {manifest['batch_id']} was removed or replaced since.", code="target_gone"
        )
    read = {".jsonl": _json_lines, ".csv": _csv_records}.get(target.suffix.lower(), _parquet_rows)
    return (
        (f"line-{row + 1}.{end}", ResultRow(row=row, status=columns["llm_status"], columns=columns))
        for row, (columns, end) in enumerate(read(target, first, offset), start=first)
    )


def _json_lines(target: Path, first: int, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    with target.open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            offset += len(line)
            yield msgspec.json.decode(line), offset


def _csv_records(target: Path, first: int, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    with target.open("rb") as stream:
        lines = _CountedLines(stream)
        names = next(csv.reader(lines))
        if offset:
            lines.go_to(offset)
        for record in csv.reader(lines):
            yield dict(zip(names, record, strict=True)), lines.position


def _parquet_rows(target: Path, first: int, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    with pq.ParquetFile(target) as file:
        groups, skipped = _groups_from(file.metadata, first)
        skip = first - skipped
        for batch in file.iter_batches(batch_size=ROWS, row_groups=groups):
            wanted = batch.slice(skip)
            skip = max(0, skip - batch.num_rows)
            for row in _readable(wanted).to_pylist():
                yield _as_json(row), 0


def _groups_from(metadata: Any, first: int) -> tuple[list[int], int]:
    """The row groups that hold the rows from ``first`` on, and how many rows come before those."""
    skipped = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if skipped + rows > first:
            return list(range(group, metadata.num_row_groups)), skipped
        skipped += rows
    return [], first


class _CountedLines:
    """A file's lines as text for the CSV reader, with the place in bytes that they were read up to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.position = 0

    def go_to(self, position: int) -> None:
        self._stream.seek(position)
        self.position = position

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        return line.decode()


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """The row in JSON's types: dates and decimals as text."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS))
    return plain


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with those columns as text that Python has no values for (nanoseconds, the year 30000)."""
    return pa.record_batch([_as_text_if_needed(column) for column in batch.columns], names=batch.schema.names)


def _as_text_if_needed(column: pa.Array) -> pa.Array:
    if not pa.types.is_temporal(column.type):
        return column
    try:
        column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast(pa.string())
    return column
