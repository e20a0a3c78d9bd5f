"""Which JSON Schemas become typed columns, and that an answer's values get there as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from airflow_batch_llm.output_schema import (
    DEEPEST,
    MOST_PROPERTIES,
    OutputField,
    OutputType,
    check_output_schema,
    parse_output_schema,
)
from airflow_batch_llm.service.typed_columns import arrow_fields, typed_columns
from airflow_batch_llm.worker.answer_check import SchemaCheck

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def of_a(part: Any, **more: Any) -> OutputType:
    (field,) = parse_output_schema({**record(a=part), **more})
    return field.type


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Person(BaseModel):
    """What a reader writes."""

    name: str = Field(description="as signed", min_length=1)
    born: int | None = Field(default=None, ge=1900)


class Review(BaseModel):
    sentiment: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    score: float | None
    colour: Colour = Colour.RED
    level: Level
    kind: Literal["review"] = "review"
    tags: list[str] = []
    people: list[Person]
    writer: Person | None = None
    spam: bool


def test_what_pydantic_makes_of_a_plain_model_is_a_small_tree_of_types() -> None:
    person = (OutputField("name", OutputType("string")), OutputField("born", OutputType("integer", nullable=True)))
    assert parse_output_schema(Review.model_json_schema()) == [
        OutputField("sentiment", OutputType("string")),
        OutputField("stars", OutputType("integer")),
        OutputField("score", OutputType("number", nullable=True)),
        OutputField("colour", OutputType("string", nullable=True)),
        OutputField("level", OutputType("integer")),
        OutputField("kind", OutputType("string", nullable=True)),
        OutputField("tags", OutputType("array", nullable=True, items=OutputType("string"))),
        OutputField("people", OutputType("array", items=OutputType("object", fields=person))),
        OutputField("writer", OutputType("object", nullable=True, fields=person)),
        OutputField("spam", OutputType("boolean")),
    ]


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": ["integer", "null"]}, OutputType("integer", nullable=True)),
        ({"anyOf": [TEXT, {"type": "null"}]}, OutputType("string", nullable=True)),
        ({"oneOf": [{"const": None}, TEXT]}, OutputType("string", nullable=True)),
        ({"allOf": [INTEGER], "description": "d"}, OutputType("integer")),
        ({"enum": ["x", None]}, OutputType("string", nullable=True)),
        ({"enum": ["x"], "type": ["string", "null"]}, OutputType("string")),
        ({"enum": [1, 2]}, OutputType("integer")),
        ({"enum": [1, 2.5]}, OutputType("number")),
        ({"enum": [1], "type": "number"}, OutputType("number")),
        ({"const": True}, OutputType("boolean")),
        ({"type": "string", "format": "date"}, OutputType("string")),
        ({"$ref": "#/$defs/a~1b%20c"}, OutputType("boolean")),
        ({"$ref": "#/$defs/more"}, OutputType("array", items=OutputType("integer"))),
        ({"type": "array", "items": {"type": ["number", "null"]}, "minItems": 1},
         OutputType("array", items=OutputType("number", nullable=True))),
    ],
)  # fmt: skip
def test_a_part_of_a_schema_has_one_type(part: dict[str, Any], kind: OutputType) -> None:
    definitions = {"a/b c": {"type": "boolean"}, "more": {"type": "array", "items": {"$ref": "#/$defs/one"}}}
    assert of_a(part, **{"$defs": definitions | {"one": INTEGER}}) == kind


def _nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = TEXT
    for _ in range(depth):
        part = record(a=part)
    return part


def _doubling(levels: int, keyword: str | None) -> dict[str, Any]:
    """A short schema that would be an enormous one, were its references written out."""

    def twice(reference: dict[str, Any]) -> dict[str, Any]:
        return record(a=reference, b=reference) if keyword is None else {keyword: [reference, reference]}

    parts = {f"d{level}": twice({"$ref": f"#/$defs/d{level + 1}"}) for level in range(levels)}
    return record(a={"$ref": "#/$defs/d0"}) | {"$defs": parts | {f"d{levels}": TEXT}}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "The schema names no type."),
    ("no object", {"type": "array", "items": TEXT}, "must be an object, and this schema says array"),
    ("object or null", {"anyOf": [record(a=TEXT), {"type": "null"}]}, "this schema says object or null"),
    ("no JSON Schema", record(a={"type": "strng"}), "not a valid JSON Schema: at ['properties']['a']['type']"),
    ("a broken pattern", record(a={"type": "string", "pattern": "("}), "not a valid JSON Schema"),
    ("another dialect", record(a=TEXT) | {"$schema": "http://json-schema.org/draft-07/schema#"}, "$schema is"),
    ("no properties", {"type": "object"}, "The schema is an object without properties"),
    ("an empty name", record(**{"": TEXT}), "a property whose name is empty"),
    ("a property that is not there", record(a=TEXT) | {"required": ["b"]}, "requires 'b', which is none of"),
    ("anything", record(a={}), "Property 'a' names no type"),
    ("true", record(a=True), "Property 'a' names no type"),
    ("only null", record(a={"type": "null"}), "Property 'a' is nothing but null"),
    ("two types", record(a={"type": ["string", "integer"]}), "Property 'a' is integer or string"),
    ("a union", record(a={"anyOf": [TEXT, INTEGER]}), "Property 'a' is 2 types at once (anyOf)"),
    ("a discriminated union", record(a={"oneOf": [record(k={"const": "x"}), record(k={"const": "y"})]}), "(oneOf)"),
    ("allOf of two", record(a={"allOf": [TEXT, {"minLength": 1}]}), "Property 'a' is 2 types at once (allOf)"),
    ("a map", record(a={"type": "object", "additionalProperties": TEXT}), "Property 'a' is a map of any keys"),
    ("a map beside", record(a=TEXT) | {"additionalProperties": {}}, "The schema is a map of any keys"),
    ("a free object", record(a=record(b={"type": "object"})), "Property 'a.b' is an object without properties"),
    ("a list of anything", record(a={"type": "array"}), "Property 'a' is an array that does not say"),
    ("a tuple", record(a={"type": "array", "prefixItems": [TEXT]}), "Property 'a' uses 'prefixItems'"),
    ("a set", record(a={"type": "array", "items": TEXT, "uniqueItems": True}), "Property 'a' uses 'uniqueItems'"),
    ("items that are maps", record(a={"type": "array", "items": {"type": "object"}}), "Property 'a[]' is an object"),
    ("mixed values", record(a={"enum": ["x", 1]}), "not all of one simple type"),
    ("values of another type", record(a={"enum": ["x"], "type": "integer"}), "not all of one simple type"),
    ("a null that the type forbids", record(a={"enum": ["x", None], "type": "string"}), "not all of one simple type"),
    ("values that are lists", record(a={"enum": [[1]]}), "not all of one simple type"),
    ("too large values", record(a={"enum": [2**63]}), "integers that 64 bits cannot hold"),
    ("recursion", record(a={"$ref": "#"}), "refers to '#' within itself"),
    ("deep recursion", record(a={"$ref": "#/$defs/T"}) | {"$defs": {"T": record(t={"$ref": "#/$defs/T"})}}, "'a.t'"),
    ("a dangling reference", record(a={"$ref": "#/$defs/T"}), "refers to '#/$defs/T', which is not in the schema"),
    ("a remote reference", record(a={"$ref": "https://example.com/a.json"}), "outside the schema. Nothing is fetched"),
    ("a file", record(a={"$ref": "file:///etc/hostname"}), "outside the schema. Nothing is fetched"),
    ("a file nobody asks for", record(a=TEXT) | {"$defs": {"T": {"$ref": "file:///etc/hostname"}}}, "is fetched"),
    ("an anchor", record(a={"$ref": "#t"}) | {"$defs": {"T": {"$anchor": "t"} | TEXT}}, "which is not in the schema"),
    ("a bound beside a reference", record(a={"$ref": "#/properties/b", "minimum": 3}, b=INTEGER), "'minimum' beside"),
    ("a bound beside an enum", record(a={"enum": [1, 2], "minimum": 2}), "'minimum' beside 'enum'"),
    ("not", record(a=TEXT | {"not": {"const": "x"}}), "Property 'a' uses 'not'"),
    ("OpenAPI's null", record(a=TEXT | {"nullable": True}), "Property 'a' uses 'nullable'"),
    ("a format vLLM refuses", record(a=TEXT | {"format": "path"}), "has the format 'path'"),
    ("two ways to a type", record(a={"$ref": "#/properties/b", "type": "string"}, b=TEXT), "both '$ref' and 'type'"),
    ("too many", record(**{f"p{number}": TEXT for number in range(MOST_PROPERTIES + 1)}), "more than 500 properties"),
    ("too deep", _nested(DEEPEST + 1), "deeper than 16"),
    ("too deep to look at", _nested(1_000), "more than 128 levels"),
    ("many in few lines", _doubling(14, None), "more than 500 properties"),
    ("unions in unions", _doubling(60, "anyOf"), "2 types at once"),
]


@pytest.mark.parametrize(("schema", "sentence"), [pytest.param(*case, id=name) for name, *case in REFUSED])
def test_what_cannot_become_columns_is_refused_in_a_sentence(schema: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_output_schema(schema)
    assert sentence in str(refused.value)


def test_the_limits_themselves_are_allowed() -> None:
    check_output_schema(record(**{f"p{number}": TEXT for number in range(MOST_PROPERTIES)}))
    check_output_schema(_nested(DEEPEST))


Made = tuple[dict[str, Any], st.SearchStrategy[Any]]
_NAMES = st.text(min_size=1, max_size=8)
_INTEGERS = st.integers(-(2**63), 2**63 - 1)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53) | st.just(2**70)


def _simple() -> st.SearchStrategy[Made]:
    plain: list[Made] = [
        (TEXT, st.text()),
        (INTEGER, _INTEGERS),
        ({"type": "number"}, _NUMBERS),
        ({"type": "boolean"}, st.booleans()),
        ({"type": "string", "format": "date"}, st.dates().map(str)),
    ]
    values = st.lists(st.text(), min_size=1, unique=True) | st.lists(_INTEGERS, min_size=1, unique=True)
    return st.sampled_from(plain) | values.map(lambda some: ({"enum": some}, st.sampled_from(some)))


def _or_null(made: Made) -> Made:
    return {"anyOf": [made[0], {"type": "null"}]}, st.none() | made[1]


def _list_of(made: Made) -> Made:
    return {"type": "array", "items": made[0]}, st.lists(made[1], max_size=3)


def _object_of(parts: Mapping[str, tuple[Made, bool]]) -> Made:
    schema = {"type": "object", "properties": {name: made[0] for name, (made, _) in parts.items()}}
    required = {name: made[1] for name, (made, needed) in parts.items() if needed}
    optional = {name: made[1] for name, (made, needed) in parts.items() if not needed}
    return schema | {"required": list(required)}, st.fixed_dictionaries(required, optional=optional)


def _objects(parts: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    return st.dictionaries(_NAMES, st.tuples(parts, st.booleans()), min_size=1, max_size=4).map(_object_of)


_PARTS = st.recursive(
    _simple(), lambda inner: inner.map(_list_of) | inner.map(_or_null) | _objects(inner), max_leaves=6
)


def _in_a_column(value: Any, kind: OutputType) -> Any:
    """What a column shows: properties that were left out are null, and numbers are floats."""
    if value is None:
        return None
    if kind.items is not None:
        return [_in_a_column(item, kind.items) for item in value]
    if kind.kind == "object":
        return {field.name: _in_a_column(value.get(field.name), field.type) for field in kind.fields}
    return float(value) if kind.kind == "number" else value


@given(st.data())
def test_an_instance_is_accepted_and_its_columns_hold_exactly_its_values(data: st.DataObject) -> None:
    schema, instances = data.draw(_objects(_PARTS))
    answers = data.draw(st.lists(instances, min_size=1, max_size=3))
    fields = parse_output_schema(schema)
    check = SchemaCheck.of(schema)
    texts = [json.dumps(answer, ensure_ascii=data.draw(st.booleans())) for answer in answers]
    assert [check.fault(text, "stop") for text in texts] == [None] * len(texts)
    columns = typed_columns(pa.array(texts), [True] * len(texts), fields)
    assert [column.type for column in columns] == [field.type for field in arrow_fields(fields)]
    for field, column in zip(fields, columns, strict=True):
        wanted = [_in_a_column(answer.get(field.name), field.type) for answer in answers]
        assert repr(column.to_pylist()) == repr(wanted)
