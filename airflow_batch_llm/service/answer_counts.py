"""How often which answer was given, from a bounded number of parts that are spread evenly over the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.page_wire import AnswerCount, Answers
from airflow_batch_llm.service.committed_results import known_keys, shown_results
from airflow_batch_llm.service.results import check_kept, placed_rows
from airflow_batch_llm.service.short_values import MOST_CHARACTERS
from airflow_batch_llm.service.shown_outcomes import TableOutcomes
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.shown_parts import ShownParts, spread
from airflow_batch_llm.wire import DatasetSpec, ResultRow
from airflow_batch_llm.worker_wire import decompress

MOST_ROWS: Final = 10_000
MOST_PARTS: Final = 40
MOST_ANSWERS: Final = 50
"""Different ones. A field with more of them is free text, of which nothing is counted; of choices the commonest are
shown."""


def counted_answers(state: ServiceState, record: Mapping[str, Any]) -> Answers:
    """The label distribution of a batch, running or ended. Raises :class:`NotFoundError` as ``/results`` does."""
    check_kept(record)
    if record["dataset"] is None or record["plan_key"] is None or record["dry_run"]:
        return Answers(rows_done=record["rows_done"])
    spec = DatasetSpec.model_validate(record["dataset"])
    judge = TableOutcomes.of(spec, record["endpoint"])
    if judge.counted is None:
        return Answers(rows_done=record["rows_done"])
    counts: Counter[str] = Counter()
    looked_at = 0
    for row in _rows(state, record):
        looked_at += 1
        label = judge(row).label
        if label is not None:
            counts[label[:MOST_CHARACTERS]] += 1
    if len(counts) > MOST_ANSWERS and spec.choices is None:
        return Answers(rows_looked_at=looked_at, rows_done=record["rows_done"])
    return Answers(
        field=judge.counted,
        counts=[AnswerCount(answer=answer, rows=rows) for answer, rows in _commonest(counts)],
        rows_looked_at=looked_at,
        rows_done=record["rows_done"],
    )


def _commonest(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_ANSWERS]


def _rows(state: ServiceState, record: Mapping[str, Any]) -> Iterator[ResultRow]:
    """All rows, where these are few; else some of some parts. Of equal rows the parts have only one."""
    small = record["manifest"] is not None and record["rows_total"] <= MOST_ROWS
    if small and record["rows_duplicate"]:
        try:
            rows = [row for _, row in placed_rows(state, record, None)]
        except NotFoundError as error:
            if error.code != "target_gone":
                raise
        else:
            yield from rows
            return
    yield from _sample(state, record)


def _sample(state: ServiceState, record: Mapping[str, Any]) -> Iterator[ResultRow]:
    pieces = _spread_parts(state, record)
    step = -(-sum(rows for _, rows in pieces) // MOST_ROWS)
    shown = shown_results(state, record)
    for key, _ in pieces:
        with state.storage.open(key) as stream:
            lines = decompress(stream.read()).splitlines(keepends=True)
        yield from shown(b"".join(lines[::step]))


def _spread_parts(state: ServiceState, record: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Storage keys of what the plan knew and of parts, at most some dozen in all, each with how many rows it has."""
    parts = ShownParts(state.database)
    known = known_keys(state, record)
    chosen = spread(len(known) + parts.totals(record["id"])[0], MOST_PARTS)
    found = [(known[number - 1], state.settings.chunk_rows) for number in chosen if number <= len(known)]
    committed = parts.at(record["id"], [number - len(known) for number in chosen if number > len(known)])
    return found + [(part.storage_key, part.rows) for part in committed]
