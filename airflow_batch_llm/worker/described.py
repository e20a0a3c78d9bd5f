"""What an engine says that it serves: the endpoints in its API description, and the fields that their bodies have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from airflow_batch_llm.models import CHAT_COMPLETIONS, ENDPOINTS, TOKENIZE

_ALTERNATIVES: Final = ("anyOf", "oneOf", "allOf")
_REFERENCE: Final = "#/components/schemas/"


def described_endpoints(description: Any) -> dict[str, list[str] | None]:
    """The endpoints of an OpenAPI ``description``, each with the fields of its request's body (None where unknown).

    An engine that describes none of them is taken to serve chat completions, which every one does.
    """
    if not isinstance(description, Mapping):
        return {CHAT_COMPLETIONS: None}
    paths = description.get("paths") or {}
    there = [endpoint for endpoint in (*ENDPOINTS, TOKENIZE) if _posts(paths, endpoint)]
    found = {endpoint: _fields(description, paths[endpoint]["post"]) for endpoint in there}
    return found or {CHAT_COMPLETIONS: None}


def _posts(paths: Mapping[str, Any], endpoint: str) -> bool:
    return isinstance(paths.get(endpoint), Mapping) and isinstance(paths[endpoint].get("post"), Mapping)


def _fields(description: Mapping[str, Any], operation: Mapping[str, Any]) -> list[str] | None:
    try:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        schemas = description["components"]["schemas"]
        names = {name for part in _objects(schema, schemas, depth=0) for name in part["properties"]}
    except (KeyError, TypeError, AttributeError):
        return None
    return sorted(names) or None


def _objects(schema: Mapping[str, Any], schemas: Mapping[str, Any], *, depth: int) -> Iterator[Mapping[str, Any]]:
    """The object schemas that a schema is made of, its references followed a few steps deep."""
    if depth > 5:
        return
    if "$ref" in schema:
        yield from _objects(schemas[schema["$ref"].removeprefix(_REFERENCE)], schemas, depth=depth + 1)
    if "properties" in schema:
        yield schema
    for alternative in _ALTERNATIVES:
        for part in schema.get(alternative, ()):
            yield from _objects(part, schemas, depth=depth + 1)
