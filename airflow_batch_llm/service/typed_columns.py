"""Answers that are instances of an output schema, as columns with its types.

Values arrive as the answer spells them: integers to the last digit, texts as texts, whatever they look like. A number
column takes the nearest 64-bit float of a decimal number, as every reader of JSON does, but an integer only where a
float is exactly that integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import msgspec
import pyarrow as pa

from airflow_batch_llm.output_schema import OutputField, OutputType
from airflow_batch_llm.typed_answer import fitted, read_answer


def arrow_fields(fields: Sequence[OutputField]) -> list[pa.Field]:
    """The columns that a schema's properties become. All may be null: a row without an answer has none of them."""
    return [pa.field(field.name, _arrow_type(field.type)) for field in fields]


def typed_columns(texts: pa.Array, valid: pa.Array | Sequence[bool], fields: Sequence[OutputField]) -> list[pa.Array]:
    """One array for each of ``fields``: the values in the answers that are ``valid``, null in the other rows.

    Raises :class:`ValueError` for an answer that says it is valid and is not: which are is for the worker to tell.
    """
    counted = [text if counts else None for text, counts in zip(texts.to_pylist(), _plain(valid), strict=True)]
    kind = pa.struct(arrow_fields(fields))
    try:
        read = msgspec.json.Decoder(_shape(fields)).decode
        made = pa.array([None if text is None else read(text) for text in counted], kind)
    except (msgspec.DecodeError, pa.ArrowInvalid, OverflowError):
        # 2.0 for an integer, a large integer for a number: right, and too rare to look for each time.
        made = pa.array([None if text is None else fitted(read_answer(text), fields) for text in counted], kind)
    return list(made.flatten())


def _plain(valid: pa.Array | Sequence[bool]) -> list[bool]:
    return [bool(counts) for counts in (valid.to_pylist() if isinstance(valid, pa.Array) else valid)]


def _arrow_type(kind: OutputType) -> pa.DataType:
    if kind.items is not None:
        return pa.list_(_arrow_type(kind.items))
    if kind.kind == "object":
        return pa.struct(arrow_fields(kind.fields))
    return {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}[kind.kind]


def _shape(fields: Sequence[OutputField]) -> Any:
    """The properties of an object as msgspec reads them: much faster than checking what was read without a type."""
    return TypedDict("_Shape", {field.name: _python_type(field.type) for field in fields}, total=False)  # type: ignore[operator]


def _python_type(kind: OutputType) -> Any:
    if kind.items is not None:
        return list[_python_type(kind.items)] | None  # type: ignore[misc]
    if kind.kind == "object":
        return _shape(kind.fields) | None
    # An integer stays one in a number column, so that pyarrow sees whether it is a float as well.
    return {"string": str, "integer": int, "number": int | float, "boolean": bool}[kind.kind] | None
