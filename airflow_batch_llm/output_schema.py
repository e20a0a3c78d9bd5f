"""JSON Schemas whose answers become typed columns.

What is supported is what Pydantic makes of plain models: texts, numbers, booleans, null beside one type, choices, lists
and nested objects. Nothing that a schema refers to is ever fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import unquote

import jsonschema_rs

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MOST_PROPERTIES: Final = 500
DEEPEST: Final = 16
"""How many objects and lists may stand in one another."""
_MOST_REFERENCES: Final = 64
_DEEPEST_JSON: Final = 128
"""What is nested deeper is not even looked at: the stack of the validator is not ours to protect."""

Kind = Literal["string", "integer", "number", "boolean", "array", "object"]

_KINDS: Final[Mapping[str, Kind]] = {
    "string": "string",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "array": "array",
    "object": "object",
}
_SOURCES: Final = ("$ref", "anyOf", "oneOf", "allOf")
_TYPED: Final = ("type", "enum", "const")
_CONSTRAINTS: Final = frozenset(
    {
        "additionalProperties",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "properties",
        "required",
    }
)
"""What vLLM does not see beside a reference, a union or an enum: measured with 0.32 and xgrammar."""
_FORMATS: Final = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "json-pointer",
        "relative-json-pointer",
        "time",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
    }
)
"""The formats that vLLM knows. It refuses a request with another one."""
_NOT_SUPPORTED: Final = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$id",
        "$recursiveRef",
        "additionalItems",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "nullable",
        "patternProperties",
        "prefixItems",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)


@dataclass(frozen=True)
class OutputType:
    """What a value of an answer is. ``items`` is there for an array, ``fields`` for an object."""

    kind: Kind
    nullable: bool = False
    items: OutputType | None = None
    fields: tuple[OutputField, ...] = ()
    limited: bool = field(default=False, compare=False)
    """Whether it is one of some values that the schema names. No column's type follows from it."""


@dataclass(frozen=True)
class OutputField:
    """One property. It is nullable also where an answer may leave it out."""

    name: str
    type: OutputType


def check_output_schema(schema: Mapping[str, Any]) -> None:
    """Raises :class:`ValueError` with a sentence for a schema whose answers cannot become typed columns."""
    parse_output_schema(schema)


def parse_output_schema(schema: Mapping[str, Any]) -> list[OutputField]:
    """The properties of the answers, in the schema's order. Raises as :func:`check_output_schema` does."""
    _check_document(schema)
    top = _Reader(schema).read(schema, "", depth=0, references=("#",))
    if top.kind != "object" or top.nullable:
        found = f"{top.kind} or null" if top.nullable else top.kind
        raise ValueError(f"An answer must be an object, and this schema says {found}.")
    output_validator(schema)
    return list(top.fields)


def output_validator(schema: Mapping[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Validates answers. Fetches nothing. Raises :class:`ValueError` for what is no JSON Schema."""
    try:
        return jsonschema_rs.Draft202012Validator(dict(schema), retriever=_never)
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"This is not a valid JSON Schema: {error.message[:300]}.") from error


def _never(uri: str) -> Any:
    raise ValueError(f"{uri} is not part of the schema, and nothing is fetched")


def _check_document(schema: Mapping[str, Any]) -> None:
    """Whether it is a JSON Schema at all, in the one dialect that is read here."""
    _check_nesting(schema)
    dialect = schema.get("$schema", DIALECT)
    if dialect != DIALECT:
        raise ValueError(f"$schema is {dialect!r}. Leave it out, or write a schema of {DIALECT}.")
    try:
        jsonschema_rs.meta.validate(dict(schema))
    except jsonschema_rs.ValidationError as error:
        where = "".join(f"[{step!r}]" for step in error.instance_path) or "its top"
        raise ValueError(f"This is not a valid JSON Schema: at {where}, {error.message[:300]}.") from error


def _check_nesting(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > _DEEPEST_JSON:
            raise ValueError(f"The schema is nested more than {_DEEPEST_JSON} levels deep.")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner


class _Reader:
    """Reads one schema. ``where`` is the place in an answer that a part of it is about, empty for the top."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._properties = 0

    def read(self, node: Any, where: str, *, depth: int, references: tuple[str, ...]) -> OutputType:
        if not isinstance(node, Mapping):
            raise _untyped(where)
        if depth > DEEPEST:
            raise ValueError(f"{_named(where)} is nested deeper than {DEEPEST} objects and lists.")
        for keyword in node:
            if keyword in _NOT_SUPPORTED and not (keyword == "$id" and not where):
                raise ValueError(f"{_named(where)} uses {keyword!r}, which typed columns do not support.")
        given = [name for name in (*_SOURCES, *_TYPED) if name in node]
        if not given:
            raise _untyped(where)
        _check_beside(node, given, where)
        if given[0] not in _SOURCES:
            return self._typed(node, where, depth, references)
        if len(given) > 1:
            raise ValueError(f"{_named(where)} has both {given[0]!r} and {given[1]!r}: only one can say its type.")
        if given[0] == "$ref":
            return self._referred(node["$ref"], where, depth, references)
        return self._only_one(node[given[0]], given[0], where, depth, references)

    def _referred(self, reference: str, where: str, depth: int, references: tuple[str, ...]) -> OutputType:
        if not reference.startswith("#"):
            raise ValueError(f"{_named(where)} refers to {reference!r}, outside the schema. Nothing is fetched.")
        if reference in references:
            raise ValueError(f"{_named(where)} refers to {reference!r} within itself: a column has an end.")
        if len(references) > _MOST_REFERENCES:
            raise ValueError(f"{_named(where)} is behind more than {_MOST_REFERENCES} references.")
        target = _found(self._root, reference)
        if target is None:
            raise ValueError(f"{_named(where)} refers to {reference!r}, which is not in the schema.")
        return self.read(target, where, depth=depth, references=(*references, reference))

    def _only_one(
        self, parts: Sequence[Any], keyword: str, where: str, depth: int, references: tuple[str, ...]
    ) -> OutputType:
        """What is left of a union without null."""
        rest = [part for part in parts if keyword == "allOf" or not _is_null(part)]
        if len(rest) != 1:
            what = f"{len(rest)} types at once" if rest else "nothing but null"
            raise ValueError(f"{_named(where)} is {what} ({keyword}), and a column has one type.")
        found = self.read(rest[0], where, depth=depth, references=references)
        return replace(found, nullable=found.nullable or len(rest) < len(parts))

    def _typed(self, node: Mapping[str, Any], where: str, depth: int, references: tuple[str, ...]) -> OutputType:
        declared = node.get("type", [])
        types = [declared] if isinstance(declared, str) else list(declared)
        kinds = {_KINDS[name] for name in types if name != "null"}
        nullable = "null" in types
        values = [node["const"]] if "const" in node else node.get("enum")
        if values is not None:
            kinds, nullable = _of_values(values, kinds, nullable=nullable or not types, where=where)
        if len(kinds) != 1:
            what = " or ".join(sorted(kinds)) or "nothing but null"
            raise ValueError(f"{_named(where)} is {what}, and a column has one type.")
        kind = kinds.pop()
        if kind == "array":
            return OutputType(kind, nullable, items=self._items(node, where, depth, references))
        if kind == "object":
            return OutputType(kind, nullable, fields=self._fields(node, where, depth, references))
        return OutputType(kind, nullable, limited=values is not None)

    def _items(self, node: Mapping[str, Any], where: str, depth: int, references: tuple[str, ...]) -> OutputType:
        if "items" not in node:
            raise ValueError(f"{_named(where)} is an array that does not say what its items are.")
        return self.read(node["items"], f"{where}[]", depth=depth + 1, references=references)

    def _fields(
        self, node: Mapping[str, Any], where: str, depth: int, references: tuple[str, ...]
    ) -> tuple[OutputField, ...]:
        properties = node.get("properties")
        if node.get("additionalProperties", False) not in (True, False):
            raise ValueError(f"{_named(where)} is a map of any keys (additionalProperties), and columns have names.")
        if not properties:
            raise ValueError(f"{_named(where)} is an object without properties, and columns have names.")
        required = node.get("required", [])
        for name in required:
            if name not in properties:
                raise ValueError(f"{_named(where)} requires {name!r}, which is none of its properties.")
        self._properties += len(properties)
        if self._properties > MOST_PROPERTIES:
            raise ValueError(f"The schema has more than {MOST_PROPERTIES} properties.")
        if "" in properties:
            raise ValueError(f"{_named(where)} has a property whose name is empty.")
        fields = []
        for name, part in properties.items():
            inner = f"{where}.{name}" if where else name
            found = self.read(part, inner, depth=depth + 1, references=references)
            fields.append(OutputField(name, replace(found, nullable=found.nullable or name not in required)))
        return tuple(fields)


def _named(where: str) -> str:
    return f"Property {where!r}" if where else "The schema"


def _check_beside(node: Mapping[str, Any], given: list[str], where: str) -> None:
    """Refuses what an engine would not hold an answer to, or would refuse for each row."""
    beside = sorted(_CONSTRAINTS & set(node))
    if given != ["type"] and beside:
        raise ValueError(f"{_named(where)} has {beside[0]!r} beside {given[-1]!r}, where engines do not look at it.")
    if node.get("format", "date") not in _FORMATS:
        raise ValueError(f"{_named(where)} has the format {node['format']!r}, which vLLM does not know: leave it out.")


def _found(root: Mapping[str, Any], reference: str) -> Any:
    """What a JSON pointer points at; None where there is nothing."""
    node: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, Mapping) and name in node:
            node = node[name]
        else:
            return None
    return node if reference == "#" or reference.startswith("#/") else None


def _is_null(node: Any) -> bool:
    return isinstance(node, Mapping) and (
        node.get("type") in ("null", ["null"]) or node.get("enum") == [None] or node.get("const", 0) is None
    )


def _of_values(values: Sequence[Any], declared: set[Kind], *, nullable: bool, where: str) -> tuple[set[Kind], bool]:
    """The kinds of the values that a place is limited to, and whether null is one of them."""
    kinds = {_kind_of(value) for value in values if value is not None}
    if None in values and not nullable:
        raise _mixed(where)
    if None in kinds or (len(kinds | declared) > 1 and (kinds | declared) != {"integer", "number"}):
        raise _mixed(where)
    if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values):
        raise ValueError(f"{_named(where)} is limited to integers that 64 bits cannot hold.")
    found = declared or ({"number"} if "number" in kinds else kinds)
    if found == {"integer"} and "number" in kinds:
        raise _mixed(where)
    return {kind for kind in found if kind is not None}, nullable and None in values


def _untyped(where: str) -> ValueError:
    return ValueError(f"{_named(where)} names no type.")


def _mixed(where: str) -> ValueError:
    return ValueError(f"{_named(where)} is limited to values that are not all of one simple type.")


def _kind_of(value: Any) -> Kind | None:
    if isinstance(value, bool):
        return "boolean"
    simple: Mapping[type, Kind] = {int: "integer", float: "number", str: "string"}
    return simple.get(type(value))
