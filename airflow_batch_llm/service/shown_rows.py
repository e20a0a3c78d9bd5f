"""Rows to look at: input, rendered prompt and output side by side, a page at a time.

A page is found in the committed parts, or by row number in the target's row groups, and what belongs to its rows is
looked up for these rows alone. Nothing here reads through a source. Of a target that is compressed as a whole the rows
before the page are read over, up to a limit; through no other is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, Literal

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.page_wire import ShownMessage, ShownRow, ShownRows
from airflow_batch_llm.service.asked_lines import AskedLines
from airflow_batch_llm.service.numbered_rows import few_columns
from airflow_batch_llm.service.row_inputs import RowInput, RowInputs
from airflow_batch_llm.service.row_prompts import Messages, Prompts, shown_messages
from airflow_batch_llm.service.row_walk import Patience, walk, wants_failed
from airflow_batch_llm.service.short_values import Shortener
from airflow_batch_llm.service.shown_outcomes import Outcome, TableOutcomes, outcomes_of
from airflow_batch_llm.service.sources import UNREADABLE
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.target_results import ColumnChoice, TargetReading
from airflow_batch_llm.wire import DatasetSpec, ResultRow

Wanted = RowStatus | Literal["failed"]
NOT_KEPT: Final = "The request is not kept any more: what a batch's run needs goes some time after its end."


@dataclass(frozen=True)
class RowFilter:
    """Which rows are wanted; of nothing, all."""

    status: Wanted | None = None
    label: str | None = None
    search: str | None = None

    def __bool__(self) -> bool:
        return (self.status, self.label, self.search) != (None, None, None)

    def takes(self, row: ResultRow, outcome: Outcome) -> bool:
        if self.status is not None and not self._has_status(row.status):
            return False
        if self.label is not None and outcome.label != self.label:
            return False
        return self.search is None or outcome.has(self.search.lower())

    def _has_status(self, status: RowStatus) -> bool:
        return wants_failed(status) if self.status == "failed" else status == self.status


@dataclass
class _Found:
    """A row of the page, which is completed piece by piece."""

    cursor: str
    row: ResultRow
    outcome: Outcome
    cut: set[str] = field(default_factory=set)
    """Which of input, prompt and output are shown in part only."""
    input: dict[str, Any] | None = None
    prompt: list[ShownMessage] | None = None
    whole: bool = False
    missing: list[str] = field(default_factory=list)

    def take_input(self, values: Mapping[str, Any]) -> None:
        short = Shortener()
        self.input = short.columns(values)
        self._note("input", short)

    def take_prompt(self, messages: Messages) -> None:
        short = Shortener()
        self.prompt = shown_messages(messages, short)
        self._note("prompt", short)

    def _note(self, what: str, short: Shortener) -> None:
        (self.cut.add if short.shortened else self.cut.discard)(what)

    def shown(self) -> ShownRow:
        outcome, short = self.outcome, Shortener()
        return ShownRow(
            row=self.row.row,
            status=self.row.status,
            input=self.input,
            prompt=self.prompt,
            label=None if outcome.label is None else short.text(outcome.label),
            error=None if outcome.error is None else short.text(outcome.error),
            output=short.value(outcome.output),
            finish_reason=outcome.finish_reason,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            shortened=short.shortened or bool(self.cut),
            missing=" ".join(dict.fromkeys(self.missing)) or None,
        )


def shown_rows(
    state: ServiceState,
    record: Mapping[str, Any],
    *,
    after: str | None,
    limit: int,
    wanted: RowFilter,
    patience: Patience | None = None,
) -> ShownRows:
    """The next ``limit`` rows behind the cursor ``after`` that are wanted, or as many of them as patience finds.

    Raises :class:`NotFoundError` where the batch's bytes have had their time, and :class:`InvalidRequestError` for a
    cursor that no page of this batch gave.
    """
    patience = patience or Patience()
    reading = TargetReading(_choice(record, wanted), patience.skip)
    way = walk(state, record, after, failed=wants_failed(wanted.status), reading=reading)
    found, last, has_more = _page(way.rows, record, after, limit, wanted, patience)
    if record["dataset"] is None:
        _add_requests(state, record, found)
    else:
        _add_inputs(state, record, found, read=not wanted or not _is_parquet(record))
    return ShownRows(
        data=[row.shown() for row in found],
        last_id=last,
        has_more=has_more,
        looked_at=patience.looked_at,
        order=way.order,
    )


def _is_parquet(record: Mapping[str, Any]) -> bool:
    return bool((record["manifest"] or {}).get("format") == "parquet")


def _choice(record: Mapping[str, Any], wanted: RowFilter) -> ColumnChoice | None:
    """Of a Parquet target, the columns that its batch has added; and where every row is shown that is read, those that
    its prompts need, and then some of the others."""
    if record["dataset"] is None:
        return None
    spec = DatasetSpec.model_validate(record["dataset"])
    added = TableOutcomes.of(spec, record["endpoint"]).names
    if wanted:
        return lambda schema: ([name for name in schema.names if name in added], {})
    return partial(few_columns, first={*added, *Prompts.of(spec, record["endpoint"]).used})


def _page(
    rows: Iterator[tuple[str, ResultRow]],
    record: Mapping[str, Any],
    last: str | None,
    limit: int,
    wanted: RowFilter,
    patience: Patience,
) -> tuple[list[_Found], str | None, bool]:
    """The rows, the cursor of what follows what was looked at, and whether there is or may be more."""
    judge = outcomes_of(record)
    found: list[_Found] = []
    for cursor, row in rows:
        outcome = judge(row)
        takes = wanted.takes(row, outcome)
        if takes and len(found) == limit:
            return found, last, True
        patience.looked()
        if takes:
            found.append(_Found(cursor, row, outcome))
        last = cursor
        if wanted and patience.at_end:
            return found, last, True
    return found, last, False


def _add_inputs(state: ServiceState, record: Mapping[str, Any], found: Sequence[_Found], *, read: bool) -> None:
    """Looks up inputs and prompts; ``read``, rows that come from the target have their columns already.

    What the target says of an input is shown where no place has it better.
    """
    spec = DatasetSpec.model_validate(record["dataset"])
    prompts = Prompts.of(spec, record["endpoint"])
    inputs = RowInputs(state, record, spec, prompts.used, TableOutcomes.of(spec, record["endpoint"]).names)
    _add_asked(AskedLines(state, record), found)
    readable = [one for one in found if not _is_unreadable(one)]
    by_number: dict[int, list[_Found]] = defaultdict(list)
    for one in readable:
        by_number[one.row.row].append(one)
    known = {
        one.row.row: inputs.of_target_row(one.row.row, one.row.columns or {})
        for one in readable
        if read and one.cursor.startswith("line-")
    }
    left = [row for row in by_number if row not in known or not known[row].whole]
    for better in inputs.found(left) if left else ():
        for one in by_number[better.row]:
            _take(one, better, prompts)
    for one in readable:
        if one.input is None and one.row.row in known:
            _take(one, known[one.row.row], prompts)
        if not one.whole:
            one.missing.append(inputs.missing)


def _is_unreadable(one: _Found) -> bool:
    """Whether it is a row without values, which was not asked; if so that is noted."""
    unreadable = (one.outcome.error or "").partition(":")[0] in UNREADABLE
    if unreadable:
        one.missing.append("It was not asked, since its line of the source could not be read as a row.")
    return unreadable


def _take(one: _Found, known: RowInput, prompts: Prompts) -> None:
    """Shows what is known of a row's input, and its prompt by it where there is none yet."""
    one.take_input(known.values)
    one.whole = known.whole
    if one.prompt is None and prompts.used <= {*known.values, *known.partitions}:
        rendered = prompts.rendered(known.values, known.partitions)
        if isinstance(rendered, str):
            one.missing.append(f"It has no prompt. {rendered}")
        else:
            one.take_prompt(rendered)


def _add_requests(state: ServiceState, record: Mapping[str, Any], found: Sequence[_Found]) -> None:
    _add_asked(AskedLines(state, record), found)
    for one in found:
        if one.prompt is None:
            one.missing.append(NOT_KEPT)


def _add_asked(lines: AskedLines, found: Sequence[_Found]) -> None:
    """The prompts that the plan's chunks have."""
    by_number = {one.row.row: one for one in found}
    for row, messages in islice(lines.of({one.row.row: one.cursor for one in found}), len(found)):
        by_number[row].take_prompt(messages)
