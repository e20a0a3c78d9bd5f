"""What became of a row, as a page shows it: from a table's output columns, or from a line of OpenAI's wire."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.output_schema import OutputField
from airflow_batch_llm.service.spec import output_columns
from airflow_batch_llm.wire import DatasetSpec, ResultRow

NUMBERS: Final = 8
"""How many numbers of an embedding are shown."""
OUTPUT: Final = "llm_output"


@dataclass(frozen=True)
class Outcome:
    """What an engine gave for one row, none of it cut yet."""

    output: Any = None
    label: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def has(self, text: str) -> bool:
        """Whether a text, which is in lower case, stands in the output or the error."""
        return any(text in found.lower() for found in (*_texts(self.output), self.error or ""))


Judge = Callable[[ResultRow], Outcome]


def outcomes_of(record: Mapping[str, Any]) -> Judge:
    """How the results of a batch are read."""
    if record["dataset"] is None:
        return request_outcome
    return TableOutcomes.of(DatasetSpec.model_validate(record["dataset"]), record["endpoint"])


@dataclass(frozen=True)
class TableOutcomes:
    """Reads the columns that a batch adds to its table."""

    names: Sequence[str]
    """Of all of these columns."""
    fields: Sequence[str]
    """Those that a schema makes."""
    counted: str | None
    """The column whose value is a row's label; None where answers are free text."""

    @classmethod
    def of(cls, spec: DatasetSpec, endpoint: str) -> TableOutcomes:
        output = output_columns(spec, endpoint)
        return cls(output.schema.names, [field.name for field in output.fields], counted_field(spec, output.fields))

    def __call__(self, row: ResultRow) -> Outcome:
        columns = row.columns or {}
        success = row.status == RowStatus.SUCCESS
        return Outcome(
            output=self._output(columns, success=success),
            label=as_label(columns.get(self.counted)) if self.counted and success else None,
            error=columns.get("llm_error") or None,
            finish_reason=columns.get("llm_finish_reason") or None,
            prompt_tokens=_number(columns.get("llm_prompt_tokens")),
            completion_tokens=_number(columns.get("llm_completion_tokens")),
        )

    def _output(self, columns: Mapping[str, Any], *, success: bool) -> Any:
        if "llm_embedding" in self.names:
            return first_numbers(columns.get("llm_embedding"))
        if self.fields and success:
            return {name: columns.get(name) for name in self.fields}
        return columns.get(OUTPUT)  # of an answer that fits no schema, the text that it was


def counted_field(spec: DatasetSpec, fields: Sequence[OutputField]) -> str | None:
    """The output column whose values can be told apart and counted: the choice; of a schema the first field that is one
    of given values or a boolean, else its first text or integer."""
    if spec.choices is not None:
        return OUTPUT
    limited = [field.name for field in fields if field.type.limited or field.type.kind == "boolean"]
    plain = [field.name for field in fields if field.type.kind in ("string", "integer")]
    return next(iter([*limited, *plain]), None)


def as_label(value: Any) -> str | None:
    """A counted value as text, the same from a part as from a target of any format."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, however it nests, and its numbers as text; not the names that they have."""
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            left.extend(inner.values())
        elif isinstance(inner, (list, tuple)):
            left.extend(inner)
        elif (text := as_label(inner)) is not None:
            yield text


def first_numbers(vector: Any) -> Any:
    """The beginning of an embedding, and how long it is; of a text, which is base64 of 32-bit floats, the same."""
    if isinstance(vector, str):
        try:
            vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
        except ValueError:  # an engine that was not asked for that encoding
            return None
    if not isinstance(vector, list):
        return None
    return {"first": vector[:NUMBERS], "length": len(vector)}


def request_outcome(row: ResultRow) -> Outcome:
    """Reads a line of an output or error file, whatever an engine has put into it."""
    body = _object(_object(row.response).get("body"))
    usage = _object(body.get("usage"))
    choice = _object(_first(body.get("choices")))
    return Outcome(
        output=None if row.status != RowStatus.SUCCESS and "error" in body else _answer(body, choice),
        error=_error(row.error) or _error(body.get("error")),
        finish_reason=_text(choice.get("finish_reason")),
        prompt_tokens=_number(usage.get("prompt_tokens", usage.get("input_tokens"))),
        completion_tokens=_number(usage.get("completion_tokens", usage.get("output_tokens"))),
    )


def _answer(body: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    if isinstance(body.get("data"), list):
        return first_numbers(_object(_first(body["data"])).get("embedding"))
    if isinstance(body.get("output"), list):
        contents = [part for item in body["output"] for part in _list(_object(item).get("content"))]
        texts = [_object(part).get("text") for part in contents]
        return "\n".join(text for text in texts if isinstance(text, str))
    samples = [_object(found) for found in _list(body.get("choices"))]
    texts = [_object(found.get("message")).get("content") or found.get("text") for found in samples]
    return texts if len(texts) > 1 else (texts or [None])[0]


def _error(error: Any) -> str | None:
    found = _object(error)
    said = [str(found[name]) for name in ("code", "message") if found.get(name) is not None]
    return ": ".join(said) or None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return int(value)
    except ValueError:
        return None
