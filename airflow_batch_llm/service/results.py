"""Results a page at a time: as they are committed while a batch runs, in source order once it has ended.

A page costs what it shows, wherever it is: a cursor says where the next one begins, in words of the place that the
results are read from. Only a filter for a rare status has to look at more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from airflow_batch_llm import clock
from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.service.committed_results import committed_results
from airflow_batch_llm.service.file_results import file_results
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.target_results import EVERYTHING, TargetReading, target_results, wrong_cursor
from airflow_batch_llm.wire import ResultPage, ResultRow

PlacedRow = tuple[str, ResultRow]
"""A row, and the cursor of what follows it."""

_CURSOR: Final = re.compile(r"(part|row|line)-(\d{1,15})(?:\.(\d{1,15}))?")


def result_page(
    state: ServiceState, record: Mapping[str, Any], *, after: str | None, limit: int, status: RowStatus | None
) -> ResultPage:
    """The ``limit`` rows after the cursor ``after`` (from the start without one), perhaps of one status alone.

    While a batch runs its rows come in the order in which they were committed, so that a client that goes on from its
    last cursor sees each once. A cursor of then goes on working after the end, but rows that were never done have no
    place in that order: read from the start for those.
    """
    rows = placed_rows(state, record, after)
    if status is not None:
        rows = (placed for placed in rows if placed[1].status == status)
    found = list(islice(rows, limit + 1))
    shown = found[:limit]
    return ResultPage(
        data=[row for _, row in shown], last_id=shown[-1][0] if shown else after, has_more=len(found) > limit
    )


def placed_rows(
    state: ServiceState, record: Mapping[str, Any], after: str | None, *, reading: TargetReading = EVERYTHING
) -> Iterator[PlacedRow]:
    """All rows behind a cursor. Raises as the places do that they are read from."""
    kind, first, second = parsed_cursor(after)
    places = state.places.of(record["team"])
    check_kept(record)
    sources: dict[str, tuple[bool, Callable[[], Iterator[PlacedRow]]]] = {
        "line": (
            bool(record["manifest"]),
            lambda: target_results(places, record["manifest"], first, second, reading=reading),
        ),
        "row": (_has_files(record), lambda: file_results(state, record, first)),
        "part": (record["plan_key"] is not None, lambda: committed_results(state, record, first, second)),
    }
    for name, (there, read) in sources.items():
        if there and kind in (None, name):
            return read()
    if kind is not None:
        raise wrong_cursor(after)
    return iter(())


def check_kept(record: Mapping[str, Any]) -> None:
    """Raises :class:`NotFoundError` for a batch whose bytes were cleaned away."""
    if record["bytes_dropped_at"] is None:
        return
    target = (record["manifest"] or {}).get("files")
    left = f" Its target was not touched: {target[0]['uri']}." if target else ""
    raise NotFoundError(
        f"The results of batch {record['id']} have expired: they were kept until "
        f"{clock.from_unix(record['bytes_dropped_at']):%Y-%m-%d %H:%M} UTC.{left}",
        code="results_expired",
    )


def parsed_cursor(after: str | None) -> tuple[str | None, int, int]:
    """The place that a cursor is in (part, row or line; None for the start) and its two numbers."""
    if after is None:
        return None, 0, 0
    match = _CURSOR.fullmatch(after)
    if match is None:
        raise wrong_cursor(after)
    return match[1], int(match[2]), int(match[3] or 0)


def _has_files(record: Mapping[str, Any]) -> bool:
    return record["output_file_id"] is not None or record["error_file_id"] is not None
