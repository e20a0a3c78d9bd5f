"""The rows of a batch one after the other, for somebody who looks at some of them: where they come from, how far to go.

A filter looks through a bounded number of rows a call. Where it asks for failed rows alone, the store knows in which
parts there are any, and no other part is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from airflow_batch_llm.errors import InvalidRequestError, NotFoundError
from airflow_batch_llm.models import FAILED, BatchStatus, RowStatus
from airflow_batch_llm.service.committed_results import PARTS, committed_results, known_keys, read_parts
from airflow_batch_llm.service.results import PlacedRow, check_kept, parsed_cursor, placed_rows
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.target_results import TargetReading, wrong_cursor
from airflow_batch_llm.store.shown_parts import ShownParts

MOST_LOOKED_AT: Final = 20_000
"""Rows that one call looks through: a second or two of reading."""
MOST_SKIPPED: Final = 200_000
"""Rows that one call reads over on its way to the first one, where a file has no places to go to."""
MOST_SECONDS: Final = 3.0
"""Of looking, where the rows are long or their place is slow."""


@dataclass
class Patience:
    """How far one call looks."""

    rows: int = MOST_LOOKED_AT
    seconds: float = MOST_SECONDS
    clock: Callable[[], float] = time.monotonic
    skips: int = MOST_SKIPPED
    looked_at: int = 0
    skipped: int = 0
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def looked(self) -> None:
        self.looked_at += 1

    def skip(self) -> None:
        """Raises :class:`InvalidRequestError` where the rows that are asked for are too far away."""
        self.skipped += 1
        if self.skipped > self.skips or self._is_late:
            raise InvalidRequestError(
                f"The rows behind this cursor are too far from the beginning of their file, which can only be read "
                f"from there: after {self.skipped:,} rows none of them had come. No row is shown. Download the target, "
                "or ask for the failed rows alone (`status=failed`), which are found without it.",
                code="rows_too_far",
                param="after",
            )

    @property
    def at_end(self) -> bool:
        return self.looked_at >= self.rows or self._is_late

    @property
    def _is_late(self) -> bool:
        return self.clock() - self._began >= self.seconds


@dataclass(frozen=True)
class Walk:
    """Rows with cursors, in an order that the place has which they are read from."""

    order: Literal["committed", "source"]
    rows: Iterator[PlacedRow]


def walk(
    state: ServiceState, record: Mapping[str, Any], after: str | None, *, failed: bool, reading: TargetReading
) -> Walk:
    """The rows behind a cursor; with ``failed``, at least those that have failed. A target is read as ``reading`` says.

    A table whose target is gone or another's is read from its parts. Raises :class:`NotFoundError` where the bytes of
    the batch have had their time, and :class:`InvalidRequestError` for a cursor that is none.
    """
    check_kept(record)
    kind, first, second = parsed_cursor(after)
    if failed:
        if kind not in (None, "part"):
            raise wrong_cursor(after)
        return Walk("committed", _with_failures(state, record, first, second))
    try:
        rows = placed_rows(state, record, after, reading=reading)
    except NotFoundError as error:
        if error.code != "target_gone" or kind is not None:
            raise
        return Walk("committed", committed_results(state, record, 0, 0))
    in_source_order = kind != "part" and BatchStatus(record["status"]).ended and record["plan_key"] is not None
    return Walk("source" if in_source_order else "committed", rows)


def wants_failed(status: RowStatus | Literal["failed"] | None) -> bool:
    """Whether a filter can only match rows of parts that have failed ones."""
    return status == "failed" or status in FAILED


def _with_failures(state: ServiceState, record: Mapping[str, Any], part: int, line: int) -> Iterator[PlacedRow]:
    if record["plan_key"] is None or not record["rows_failed"]:
        return iter(())
    return read_parts(state, record, _parts_with_failures(state, record, part), part, line)


def _parts_with_failures(state: ServiceState, record: Mapping[str, Any], first: int) -> Iterator[tuple[int, str]]:
    """Numbers and keys as :func:`committed_results` counts them. What the plan knew is read only where rows of it must
    have failed, which the store does not know one by one."""
    parts = ShownParts(state.database)
    known = known_keys(state, record)
    in_parts = parts.totals(record["id"])[2]
    if record["rows_failed"] > in_parts:
        yield from enumerate(known[first:], start=first)
    place = max(0, first - len(known))
    while found := parts.with_failures(record["id"], after=place, limit=PARTS):
        yield from ((len(known) + part.place - 1, part.storage_key) for part in found)
        place = found[-1].place
