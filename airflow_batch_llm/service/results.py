"""Reading a finished batch's target back, as JSON lines, some thousand rows at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.service.sources import ROWS
from airflow_batch_llm.service.targets import read_manifest


def target_lines(manifest: Mapping[str, Any], limit: int | None) -> Iterator[bytes]:
    """The first ``limit`` rows (or all) of the target that ``manifest`` names.

    Raises :class:`NotFoundError` where the target is gone or belongs to another batch by now.
    """
    target = Path(manifest["files"][0]["uri"])
    standing = read_manifest(target)
    if standing is None or standing.batch_id != manifest["batch_id"] or not target.exists():
        raise NotFoundError(
            f"Target {target} of batch {manifest['batch_id']} was removed or replaced since.", code="target_gone"
        )
    return islice(_lines(target), limit)


def _lines(target: Path) -> Iterator[bytes]:
    match target.suffix.lower():
        case ".jsonl":
            with target.open("rb") as stream:
                yield from stream
        case ".csv":
            with target.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    yield orjson.dumps(row) + b"\n"
        case _:
            with pq.ParquetFile(target) as file:
                for batch in file.iter_batches(batch_size=ROWS):
                    for row in _readable(batch).to_pylist():
                        yield orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n"


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
