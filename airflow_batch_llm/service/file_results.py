"""The results of a finished request file, read from its output and error file by way of their index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO

import msgspec
import pyarrow.parquet as pq

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.service.file_planner import ROW_GROUP
from airflow_batch_llm.service.result_files import index_key
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.wire import ResultRow


def file_results(state: ServiceState, record: Mapping[str, Any], first: int) -> Iterator[tuple[str, ResultRow]]:
    """The rows from number ``first`` on, each with a cursor.

    Raises :class:`NotFoundError` where a file of the results expired or was deleted.
    """
    ids = {failed: record[name] for failed, name in ((False, "output_file_id"), (True, "error_file_id"))}
    files = {failed: state.files.get(record["team"], file_id) for failed, file_id in ids.items() if file_id}
    if not files:
        raise NotFoundError(f"Batch {record['id']} has no result files.", code="no_results")
    return _read(state, {failed: file.storage_key for failed, file in files.items()}, first)


def _read(state: ServiceState, keys: dict[bool, str], first: int) -> Iterator[tuple[str, ResultRow]]:
    with ExitStack() as opened:
        streams = {failed: opened.enter_context(state.storage.open(key)) for failed, key in keys.items()}
        index = opened.enter_context(state.storage.open(index_key(next(iter(keys.values())))))
        for row, status, failed, offset, size in _places(index, first):
            streams[failed].seek(offset)
            line = msgspec.json.decode(streams[failed].read(size))
            yield (
                f"row-{row + 1}",
                ResultRow(
                    row=row,
                    status=status,
                    custom_id=line["custom_id"],
                    response=line["response"],
                    error=line["error"],
                ),
            )


def _places(index: BinaryIO, first: int) -> Iterator[tuple[Any, ...]]:
    with pq.ParquetFile(index) as file:
        groups = list(range(first // ROW_GROUP, file.metadata.num_row_groups))
        for batch in file.iter_batches(batch_size=ROW_GROUP, row_groups=groups, use_threads=False):
            places = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            yield from (place for place in places if place[0] >= first)
