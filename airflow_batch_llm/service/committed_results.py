"""What is known of a batch's rows before it has ended: results that its plan knew, and the parts committed so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec
import pyarrow.parquet as pq

from airflow_batch_llm.service.file_planner import ROW_GROUP
from airflow_batch_llm.service.plan_stage import RESULTS_FOLDER, ROWS_FILE
from airflow_batch_llm.service.result_files import result_line
from airflow_batch_llm.service.spec import output_columns
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.table_results import result_table
from airflow_batch_llm.wire import DatasetSpec, ResultRow
from airflow_batch_llm.worker_wire import ResultLine, decompress, read_lines

PARTS: Final = 50
"""How many parts are looked up at a time."""


def committed_results(
    state: ServiceState, record: Mapping[str, Any], part: int, line: int
) -> Iterator[tuple[str, ResultRow]]:
    """The results from line ``line`` of part ``part`` on, each with a cursor, in the order of their commits."""
    return read_parts(state, record, enumerate(_keys(state, record, part), start=part), part, line)


def read_parts(
    state: ServiceState, record: Mapping[str, Any], numbered: Iterable[tuple[int, str]], part: int, line: int
) -> Iterator[tuple[str, ResultRow]]:
    """The results in parts by number and storage key, each with a cursor; those of part ``part`` from ``line`` on."""
    shown = shown_results(state, record)
    for number, key in numbered:
        with state.storage.open(key) as stream:
            content = decompress(stream.read())
        first = line if number == part else 0
        for place, result in enumerate(islice(shown(content), first, None), start=first + 1):
            yield f"part-{number}.{place}", result


def shown_results(state: ServiceState, record: Mapping[str, Any]) -> Callable[[bytes], Iterator[ResultRow]]:
    """Reads the lines of a part as the batch's rows are shown."""
    return _Requests(state, record) if record["dataset"] is None else _TableRows(record)


def known_keys(state: ServiceState, record: Mapping[str, Any]) -> list[str]:
    """The storage keys of what the plan knew; they are numbered before the parts."""
    return list(state.storage.list(f"{record['plan_key']}/{RESULTS_FOLDER}"))


def _keys(state: ServiceState, record: Mapping[str, Any], first: int) -> Iterator[str]:
    """The storage keys of what the plan knew, then of the parts, from number ``first`` on."""
    known = known_keys(state, record)
    yield from known[first:]
    offset = max(0, first - len(known))
    while keys := state.chunks.part_keys(record["id"], offset=offset, limit=PARTS):
        yield from keys
        offset += len(keys)


class _TableRows:
    """Shows results of a table in the columns that they will be in the target."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._output = output_columns(DatasetSpec.model_validate(record["dataset"]), record["endpoint"])

    def __call__(self, lines: bytes) -> Iterator[ResultRow]:
        for batch in result_table(lines).to_batches():
            rows = batch.column("row").to_pylist()
            for row, columns in zip(rows, self._output.made(batch).to_pylist(), strict=True):
                yield ResultRow(row=row, status=columns["llm_status"], columns=columns)


class _Requests:
    """Shows results of a request file, whose parts have row numbers only, under their ``custom_id``."""

    def __init__(self, state: ServiceState, record: Mapping[str, Any]) -> None:
        self._state = state
        self._record = record
        self._group = -1
        self._ids: list[str] = []

    def __call__(self, lines: bytes) -> Iterator[ResultRow]:
        return (self._row(result) for result in read_lines(lines, ResultLine))

    def _row(self, result: ResultLine) -> ResultRow:
        custom_id = self._custom_id(result.row)
        line = msgspec.json.decode(result_line(self._record["id"], custom_id, result))
        return ResultRow(
            row=result.row,
            status=result.status,  # type: ignore[arg-type]
            custom_id=custom_id,
            response=line["response"],
            error=line["error"],
        )

    def _custom_id(self, row: int) -> str:
        group, place = divmod(row, ROW_GROUP)
        if group != self._group:
            key = f"{self._record['plan_key']}/{ROWS_FILE}"
            with self._state.storage.open(key) as stream, pq.ParquetFile(stream) as file:
                self._ids = file.read_row_group(group, columns=["custom_id"])["custom_id"].to_pylist()
            self._group = group
        return self._ids[place]
