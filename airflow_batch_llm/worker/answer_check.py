"""What an answer must be to count for a table's row. Made once for a chunk, from its claim."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS
from airflow_batch_llm.output_schema import OutputField, output_validator, parse_output_schema
from airflow_batch_llm.typed_answer import DoesNotFitError, NotJsonError, fitted, read_answer
from airflow_batch_llm.worker_wire import Claim, ResultLine

MESSAGE_LENGTH: Final = 500
"""How much of a text that others wrote goes into a table's row; some repeat the whole prompt."""

_UNKNOWN_LOGPROB: Final = -9999.0
"""What vLLM says of a token whose probability it does not know."""
_ROUNDING: Final = 1e-3
"""How far a logprob may be above 0. An engine that gives logits in their place is far above."""


class _Token(msgspec.Struct):
    logprob: float = _UNKNOWN_LOGPROB


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


@dataclass(frozen=True)
class Sample:
    """One of the texts in an answer."""

    text: str | None
    finish_reason: str | None
    ended: bool = True
    """Whether the model ended it: not the most tokens that it may have, and no stop string."""
    thought: bool = False
    """Whether the model reasoned before."""
    logprobs: msgspec.Raw | None = None


@dataclass(frozen=True)
class SchemaCheck:
    """Whether a text is an instance of a schema, and fits the columns that are made of it."""

    fields: Sequence[OutputField]
    validator: Any

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> SchemaCheck:
        return cls(parse_output_schema(schema), output_validator(schema))

    def fault(self, text: str, finish_reason: str | None) -> tuple[str, str] | None:
        """A code and a sentence for what is wrong with an answer; None for one that is right."""
        try:
            answer = read_answer(text)
            for error in self.validator.iter_errors(answer):
                return "schema_mismatch", f"{_place(error.instance_path)}: {_cut(error.message)}."
            fitted(answer, self.fields)
        except NotJsonError as error:
            if finish_reason == "length":
                return "truncated", "The answer reached the most tokens that it may have before its JSON was complete."
            return "not_json", str(error)
        except DoesNotFitError as error:
            return "schema_mismatch", str(error)
        return None


@dataclass(frozen=True)
class AnswerCheck:
    """Makes results of answers: the answer as it came where it is wanted ``whole``, else what a table's row needs."""

    endpoint: str = CHAT_COMPLETIONS
    whole: bool = False
    samples: int = 1
    choices: frozenset[str] | None = None
    schema: SchemaCheck | None = None

    @classmethod
    def of(cls, claim: Claim) -> AnswerCheck:
        """Raises :class:`ValueError` for a schema that this worker cannot check."""
        return cls(
            claim.endpoint,
            claim.whole,
            claim.parameters.get("n") or 1,
            None if claim.choices is None else frozenset(claim.choices),
            None if claim.output_schema is None else SchemaCheck.of(claim.output_schema),
        )

    @property
    def of_vectors(self) -> bool:
        return self.endpoint == EMBEDDINGS and not self.whole

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        """The choices that another choice begins with, which in their order stands right behind."""
        pairs = itertools.pairwise(sorted(self.choices or ()))
        return frozenset(choice for choice, next_ in pairs if next_.startswith(choice))

    def fill(self, result: ResultLine, samples: Sequence[Sample]) -> ResultLine:
        """Puts the texts into a result, and its status where they do not count."""
        if self.samples > 1:
            return self._fill_samples(result, samples)
        sample = samples[0] if samples else Sample(None, result.finish_reason)
        result.output = sample.text
        if sample.text is None:
            return _invalid(result, "no_text", f"The engine gave no text (finish reason {result.finish_reason}).")
        if self.choices is not None:
            return self._fill_choice(result, sample, sample.text)
        fault = self.schema.fault(sample.text, sample.finish_reason) if self.schema else None
        return _invalid(result, *fault) if fault else result

    def _fill_samples(self, result: ResultLine, samples: Sequence[Sample]) -> ResultLine:
        result.outputs = [sample.text for sample in samples if sample.text is not None]
        result.finish_reason = next((s.finish_reason for s in samples if s.finish_reason != "stop"), "stop")
        if len(samples) != self.samples:
            message = f"The engine gave {len(samples)} samples where {self.samples} were asked for."
            return _invalid(result, "missing_samples", message)
        for number, sample in enumerate(samples, 1):
            if sample.text is None:
                message = f"Sample {number} of {len(samples)} has no text (finish reason {sample.finish_reason})."
                return _invalid(result, "no_text", message)
        return result

    def _fill_choice(self, result: ResultLine, sample: Sample, text: str) -> ResultLine:
        choices = self.choices or frozenset()
        if text not in choices:
            message = f"The answer is none of the {len(choices)} choices (finish reason {sample.finish_reason})."
            return _invalid(result, "not_a_choice", message)
        if not sample.ended and text in self._beginnings:
            message = f"The answer was cut (finish reason {sample.finish_reason}), and another choice begins with it."
            return _invalid(result, "truncated", message)
        result.confidence = confidence(sample)
        return result


def confidence(sample: Sample) -> float | None:
    """How probable the engine held the tokens of a choice: the product of what its constrained sampling gave each.

    vLLM takes logprobs after the grammar's mask and before temperature, penalties and biases, so at each step they are
    the model's own probabilities, shared among the tokens that still lead to a choice; the token that ends the text
    counts as well. Over all ways to spell all choices in tokens they sum to 1, and the confidence is that of the one
    way that was taken: at most the choice's whole probability, and next to all of it where a model spells as it was
    taught to.

    None where that is not known: without logprobs, where the model reasoned before (its thoughts are among the
    logprobs), and where the text ended without the token that ends it.
    """
    if sample.logprobs is None or sample.thought or not sample.ended:
        return None
    try:
        tokens = (msgspec.json.decode(sample.logprobs, type=_Logprobs | None) or _Logprobs()).content
    except msgspec.DecodeError:
        return None
    if not tokens or not all(_UNKNOWN_LOGPROB < token.logprob < _ROUNDING for token in tokens):
        return None
    return min(1.0, math.exp(math.fsum(token.logprob for token in tokens)))


def fill_vector(result: ResultLine, vector: msgspec.Raw) -> ResultLine:
    """Puts a vector into a result, which the engine may have written as base64 or as a list of numbers.

    Raises :class:`ValueError` for what is neither.
    """
    values = _floats(vector)
    if not values:
        raise ValueError("The vector is empty")
    if not math.isfinite(sum(values)):  # 32-bit floats cannot overflow a sum of 64 bits
        result.status, result.code = "error", "not_finite"
        result.error = f"The vector of {len(values)} numbers has one that is not finite."
        return result
    if sys.byteorder == "big":
        values.byteswap()
    result.embedding = base64.b64encode(values).decode()
    return result


def _floats(vector: msgspec.Raw) -> array[float]:
    decoded = msgspec.json.decode(vector, type=str | list[float | None])
    if isinstance(decoded, list):
        return array("f", (math.nan if value is None else value for value in decoded))
    values = array("f")
    try:
        values.frombytes(base64.b64decode(decoded, validate=True))
    except binascii.Error as error:
        raise ValueError(f"The vector is no base64: {error}") from error
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _invalid(result: ResultLine, code: str, message: str) -> ResultLine:
    result.status, result.code, result.error = "invalid_output", code, message
    return result


def _place(path: Sequence[str | int]) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return f"{_cut(steps.removeprefix('.'))!r} in the answer" if path else "The answer"


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LENGTH // 2 else text[: MESSAGE_LENGTH // 2] + "…"
