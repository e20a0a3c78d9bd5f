"""Answers as typed columns: value for value what they say, null where there is none."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.output_schema import parse_output_schema
from airflow_batch_llm.service.typed_columns import arrow_fields, typed_columns


def _columns(kind: dict[str, Any], *texts: str | None, valid: list[bool] | None = None) -> pa.Array:
    fields = parse_output_schema({"type": "object", "properties": {"a": kind}, "required": ["a"]})
    (column,) = typed_columns(pa.array(texts, pa.string()), valid or [text is not None for text in texts], fields)
    return column


def test_fields_are_columns_of_their_types() -> None:
    person = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}}}
    properties = {
        "text": {"type": "string", "format": "date-time"},
        "label": {"enum": ["x", "y"]},
        "count": {"type": "integer"},
        "score": {"type": "number"},
        "good": {"type": "boolean"},
        "people": {"type": "array", "items": person},
    }
    who = pa.struct([("name", pa.string()), ("age", pa.int64())])
    assert arrow_fields(parse_output_schema({"type": "object", "properties": properties})) == [
        pa.field("text", pa.string()),
        pa.field("label", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("good", pa.bool_()),
        pa.field("people", pa.list_(who)),
    ]


@pytest.mark.parametrize(
    ("kind", "spelled", "value"),
    [
        ("integer", "9223372036854775807", 2**63 - 1),
        ("integer", "-9223372036854775808", -(2**63)),
        ("integer", "9007199254740993", 2**53 + 1),
        ("integer", "2.0", 2),
        ("integer", "1e2", 100),
        ("number", "-0.0", -0.0),
        ("number", "5", 5.0),
        ("number", "0.1", 0.1),
        ("number", "5e-324", 5e-324),
        ("number", "9007199254740992", 2.0**53),
        ("number", "1152921504606846976", 2.0**60),
        ("number", "100000000000000000000", 1e20),
        ("string", '"2026-01-31"', "2026-01-31"),
        ("string", '"12:30"', "12:30"),
        ("string", '"1"', "1"),
        ("string", '"null"', "null"),
        ("string", '""', ""),
        ("string", '"\\u00e9\\ud83d\\ude00\\u0000\\n\\/"', "é😀\0\n/"),
        ("boolean", "false", False),
    ],
)
def test_a_value_arrives_as_it_was_spelled(kind: str, spelled: str, value: Any) -> None:
    column = _columns({"type": kind}, f'{{"a":{spelled}}}', '{"a":null}', f' {{ "more": [0], "a" : {spelled} }} ')
    assert repr(column.to_pylist()) == repr([value, None, value])


def test_one_row_that_is_read_slowly_changes_none_of_the_others() -> None:
    column = _columns({"type": "number"}, '{"a":0.1}', '{"a":100000000000000000000}', '{"a":-0.0}', '{"a":3}')
    assert repr(column.to_pylist()) == "[0.1, 1e+20, -0.0, 3.0]"


def test_rows_without_a_valid_answer_are_null_whatever_their_text_is() -> None:
    texts = ('{"a":[1]}', "no JSON", None, '{"a":["x"]}', '{"a":[]}')
    column = _columns({"type": "array", "items": {"type": "integer"}}, *texts, valid=[True, False, False, False, True])
    assert column.to_pylist() == [[1], None, None, None, []]
    assert column.null_count == 3


def test_rows_are_valid_where_an_array_says_so_and_null_is_not_valid() -> None:
    fields = parse_output_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    texts = pa.array(['{"a":1}', '{"a":2}', "{}", '{"a":4}'])
    (column,) = typed_columns(texts, pa.array([True, False, True, None]), fields)
    assert column.to_pylist() == [1, None, None, None]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_answer_at_all_makes_columns_of_nulls(rows: int) -> None:
    column = _columns({"type": "object", "properties": {"b": {"type": "boolean"}}}, *[None] * rows)
    assert (len(column), column.null_count, column.type) == (rows, rows, pa.struct([("b", pa.bool_())]))


def test_columns_of_a_slice_are_the_slice() -> None:
    fields = parse_output_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    texts = pa.array([f'{{"a":{row}}}' for row in range(10)]).slice(3, 4)
    (column,) = typed_columns(texts, [True] * 4, fields)
    assert column.to_pylist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", '{"a":1.5}'),
        ("integer", '{"a":true}'),
        ("integer", '{"a":9223372036854775808}'),
        ("integer", '{"a":"1"}'),
        ("number", '{"a":9007199254740993}'),
        ("number", '{"a":true}'),
        ("number", '{"a":1e999}'),
        ("string", '{"a":1}'),
        ("boolean", '{"a":0}'),
        ("string", '{"a":"\\ud800"}'),
        ("string", '{"a":"x"'),
        ("string", "[]"),
    ],
)
def test_an_answer_that_was_not_checked_is_never_bent(kind: str, text: str) -> None:
    with pytest.raises(ValueError):
        _columns({"type": kind}, text)
