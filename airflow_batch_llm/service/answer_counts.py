"""How often which answer was given, from a bounded number of parts that are spread evenly over the batch.

Where rows equal others, from row groups of its Parquet target instead, which have them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.page_wire import AnswerCount, Answers
from airflow_batch_llm.service.committed_results import known_keys, shown_results
from airflow_batch_llm.service.results import check_kept
from airflow_batch_llm.service.short_values import MOST_CHARACTERS
from airflow_batch_llm.service.shown_outcomes import TableOutcomes
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.target_sample import Sample, sampled_rows
from airflow_batch_llm.store.shown_parts import ShownParts, spread
from airflow_batch_llm.wire import DatasetSpec, Manifest, ResultRow
from airflow_batch_llm.worker_wire import decompress

MOST_ROWS: Final = 10_000
MOST_PARTS: Final = 40
MOST_ANSWERS: Final = 50
"""Different ones. A field with more of them is free text, of which nothing is counted; of choices the commonest are
shown."""


def counted_answers(state: ServiceState, record: Mapping[str, Any]) -> Answers:
    """The label distribution of a batch, running or ended. Raises :class:`NotFoundError` as ``/results`` does."""
    check_kept(record)
    answers = Answers(rows_done=record["rows_done"])
    if record["dataset"] is None:
        return answers
    spec = DatasetSpec.model_validate(record["dataset"])
    judge = TableOutcomes.of(spec, record["endpoint"])
    answers.field = judge.counted
    if judge.counted is None or record["plan_key"] is None or record["dry_run"]:
        return answers
    found = _found(state, record, judge)
    answers.distinct = found.distinct
    answers.rows_looked_at, answers.rows_failed = found.counts.total(), found.without
    if len(found.counts) > MOST_ANSWERS and spec.choices is None:
        answers.field = None
    else:
        answers.counts = [AnswerCount(answer=answer, rows=rows) for answer, rows in _commonest(found.counts)]
    return answers


@dataclass
class _Found:
    """What was counted, and what it was counted in."""

    distinct: bool
    counts: Counter[str] = field(default_factory=Counter)
    without: int = 0
    """Rows without an answer."""

    def count(self, rows: Iterable[ResultRow], judge: TableOutcomes) -> _Found:
        for row in rows:
            label = judge(row).label
            if label is None:
                self.without += 1
            else:
                self.counts[label[:MOST_CHARACTERS]] += 1
        return self


def _found(state: ServiceState, record: Mapping[str, Any], judge: TableOutcomes) -> _Found:
    """Of equal rows the parts have only one, a target has all. One that cannot be read has no say."""
    parquet = (record["manifest"] or {}).get("format") == "parquet"
    if parquet and record["rows_duplicate"] and judge.counted:
        manifest = Manifest.model_validate(record["manifest"])
        places = state.places.of(record["team"])
        try:
            rows = sampled_rows(places, manifest, judge.counted, Sample(MOST_ROWS, MOST_PARTS))
            return _Found(distinct=False).count(rows, judge)
        except (NotFoundError, ValueError, OSError, pa.ArrowException):  # gone, another's or edited
            pass
    return _Found(distinct=record["rows_duplicate"] > 0).count(_sample(state, record), judge)


def _commonest(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_ANSWERS]


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
