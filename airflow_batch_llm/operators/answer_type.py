"""The JSON Schema of typed answers, from what a Dag gives as ``output_type``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def answer_schema(output_type: Any) -> dict[str, Any] | None:
    """The schema of a Pydantic model, or the schema that was given. Raises ValueError for what is neither."""
    if output_type is None:
        return None
    if isinstance(output_type, type) and issubclass(output_type, BaseModel):
        return output_type.model_json_schema()
    if not isinstance(output_type, Mapping):
        raise ValueError(  # noqa: TRY004 (a wrong argument of a Dag is one kind of error)
            f"output_type is {output_type!r}; it must be a Pydantic model (a class) or a JSON Schema (a dict)."
        )
    if output_type.get("type") != "object" or not output_type.get("properties"):
        raise ValueError(
            "output_type is a JSON Schema of something else than an object with properties. Every answer is an object, "
            'whose properties become columns: {"type": "object", "properties": {…}}.'
        )
    try:
        return dict(json.loads(json.dumps(output_type, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"output_type is no JSON: {error}.") from error
