"""What a table would take: planned without staging it, with a sample of its rows for an engine to tokenize."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.service.asked_rows import Ordered
from airflow_batch_llm.wire import DatasetSpec, Estimate
from airflow_batch_llm.worker_wire import ResultLine, RowLine

SAMPLE_ROWS: Final = 500
"""How many rows are tokenized: the mean of so many is known to a few percent, and they take an engine a second."""
ESTIMATE_FILE: Final = "estimate.json"
_SECONDS_AN_HOUR: Final = 3_600


class Counted(msgspec.Struct):
    """What a dry run's plan found, in its storage until the sample is tokenized."""

    rows: int
    rows_faulty: int
    rows_duplicate: int
    rows_reused: int
    rows_asked: int
    prompt_tokens: int
    """Estimated from characters, of all rows to ask."""
    sampled: dict[int, int]
    """The same of the rows in the sample."""
    answer_tokens: int
    """Of one row, where nothing is known from earlier answers."""


@dataclass
class Sample:
    """Counts the rows to ask and keeps some of them, each as likely as any other."""

    answer_tokens: int
    rows: int = 0
    prompt_tokens: int = 0
    kept: list[tuple[int, str, int]] = field(default_factory=list)
    """Row numbers with bodies and estimated prompt tokens."""
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 (a sample, no secret)

    def add(self, some: Ordered) -> None:
        tokens = some.tokens - self.answer_tokens
        self.prompt_tokens += int(tokens.sum())
        for position, (row, count) in enumerate(zip(some.rows.tolist(), tokens.tolist(), strict=True)):
            place = len(self.kept) if len(self.kept) < SAMPLE_ROWS else self._random.randrange(self.rows + 1)
            if place < SAMPLE_ROWS:
                self.kept[place : place + 1] = [(row, some.bodies[position].as_py(), count)]
            self.rows += 1

    def lines(self, endpoint: str) -> list[RowLine]:
        """The requests that have the sample tokenized."""
        return [
            RowLine(row, msgspec.Raw(_for_tokenizer(body) if endpoint == EMBEDDINGS else body.encode()))
            for row, body, _ in self.kept
        ]


@dataclass(frozen=True)
class Pace:
    """What a model's batches have taken so far."""

    tokens: int
    """Prompt tokens that were not in a cache, and answer tokens."""
    gpu_seconds: float


def estimate(
    counted: Counted,
    tokenized: Sequence[ResultLine],
    *,
    answers: float | None,
    pace: Pace | None,
    price: float | None,
) -> Estimate:
    """Scales the characters by what the sample's tokens were.

    :param answers: answer tokens a row under the same spec, where there were any.
    :param price: of an hour of an engine.
    """
    found = {line.row: line.prompt_tokens for line in tokenized if line.status == "success" and line.prompt_tokens}
    guessed = sum(counted.sampled[row] for row in found)
    ratio = sum(found.values()) / guessed if guessed else 1.0
    prompt = round(counted.prompt_tokens * ratio)
    completion = round(counted.rows_asked * (counted.answer_tokens if answers is None else answers))
    seconds = None if pace is None else (prompt + completion) * pace.gpu_seconds / pace.tokens
    return Estimate(
        rows=counted.rows,
        rows_faulty=counted.rows_faulty,
        rows_duplicate=counted.rows_duplicate,
        rows_reused=counted.rows_reused,
        rows_asked=counted.rows_asked,
        prompt_tokens=prompt,
        tokens_from="tokenized sample" if guessed else "characters",
        sample_rows=len(found),
        completion_tokens=completion,
        gpu_seconds=None if seconds is None else round(seconds, 1),
        cost=None if seconds is None or price is None else round(seconds / _SECONDS_AN_HOUR * price, 4),
    )


def same_question(one: Mapping[str, Any], other: DatasetSpec) -> bool:
    """Whether a stored spec asks what another one asks, of whichever rows."""
    spec = DatasetSpec.model_validate(one)
    asks = ("messages", "input", "choices", "output_schema", "parameters")
    return all(getattr(spec, name) == getattr(other, name) for name in asks)


def _for_tokenizer(body: str) -> bytes:
    return msgspec.json.encode({"prompt": msgspec.json.decode(body)["input"]})
