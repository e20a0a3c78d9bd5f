"""Rows of a Parquet target from all over it, for somebody who counts: of row groups evenly spread, some rows each.

Streams: never holds more than some thousand rows of two columns in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.numbered_rows import MOST_UNPACKED_BYTES, bytes_of
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.target_results import (
    READ_AHEAD,
    as_json,
    check_standing,
    decoded_together,
    opened_target,
    readable,
)
from airflow_batch_llm.store.shown_parts import spread
from airflow_batch_llm.wire import Manifest, ResultRow, TargetFile

_STATUS: Final = "llm_status"


class Sample(NamedTuple):
    """How much is looked at."""

    rows: int
    groups: int


def sampled_rows(places: Places, manifest: Manifest, column: str, most: Sample) -> Iterator[ResultRow]:
    """Rows with one column and their status; all rows, where there are not more.

    Row groups are chosen by rows that are evenly spread, so that the rows of large groups have no less say. In one of
    very long values the rows come from its beginning.

    Raises :class:`NotFoundError` where the target is gone, was edited or belongs to another batch by now, and
    :class:`OSError` or :class:`pyarrow.ArrowException` where it cannot be read.
    """
    check_standing(places, manifest)
    whole = manifest.rows <= most.rows and len(manifest.files) <= most.groups
    chosen = range(1, manifest.rows + 1) if whole else spread(manifest.rows, most.groups)
    each = 1 if whole else most.rows // most.groups
    for file, start, end in _placed(manifest):
        wanted = [number - 1 - start for number in chosen if start < number <= end]
        if wanted:
            with opened_target(places, manifest, file) as stream, _opened(stream) as parquet:
                for place, columns in _of_groups(parquet, wanted, each, column, MOST_UNPACKED_BYTES // most.groups):
                    yield ResultRow(row=start + place, status=RowStatus(str(columns.get(_STATUS))), columns=columns)


def _placed(manifest: Manifest) -> Iterator[tuple[TargetFile, int, int]]:
    """The files, each with how many rows come before it and before the next one."""
    edges = pairwise([0, *accumulate(file.rows for file in manifest.files)])
    return ((file, start, end) for file, (start, end) in zip(manifest.files, edges, strict=True))


def _opened(stream: Any) -> pq.ParquetFile:
    return pq.ParquetFile(stream, buffer_size=READ_AHEAD, pre_buffer=False)


def _of_groups(
    file: pq.ParquetFile, wanted: list[int], each: int, column: str, most_bytes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of the row groups that have the wanted rows, ``each`` times as many rows as are wanted of them."""
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    edges = [0, *accumulate(group.num_rows for group in groups)]
    for group, some in Counter(bisect_right(edges, place) - 1 for place in wanted if place < edges[-1]).items():
        rows = groups[group].num_rows
        _, size = bytes_of(groups[group], [column, _STATUS])
        first = min(rows, max(some * each, rows * most_bytes // max(1, size)))
        for place, columns in _picked(file, group, [place - 1 for place in spread(first, some * each)], column):
            yield edges[group] + place, columns


def _picked(file: pq.ParquetFile, group: int, places: list[int], column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    some = decoded_together(file.metadata, [group])
    start = 0
    left = iter(places)
    place = next(left, None)
    for batch in file.iter_batches(some, row_groups=[group], columns=[column, _STATUS], use_threads=False):
        picked = []
        while place is not None and place < start + batch.num_rows:
            picked.append(place - start)
            place = next(left, None)
        rows = readable(batch.take(pa.array(picked, pa.int64()))).to_pylist()
        for number, row in zip(picked, rows, strict=True):
            yield start + number, as_json(row)
        if place is None:
            return
        start += batch.num_rows
