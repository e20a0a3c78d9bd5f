"""Prompt templates: ``{name}`` is replaced, ``{{name}}`` is written literally, any other brace stays as it is."""

from __future__ import annotations

import datetime
import decimal
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

_PLACEHOLDER: Final = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")


class NotTextError(Exception):
    """A value that has no honest rendering as text."""


@dataclass(frozen=True)
class Template:
    """A parsed template: literal texts around the names that go between them."""

    texts: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        texts, names, text, end = [], [], "", 0
        for match in _PLACEHOLDER.finditer(source):
            text += source[end : match.start()]
            end = match.end()
            if match[1] is not None:
                text += f"{{{match[1]}}}"
            else:
                texts.append(text)
                names.append(match[2])
                text = ""
        return cls((*texts, text + source[end:]), tuple(names))


def as_text(name: str, value: Any) -> str:
    """How a value reads in a prompt: text as it is, null as nothing, numbers and dates in their usual form,
    lists and objects as JSON. Raises :class:`NotTextError` for bytes."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float() | decimal.Decimal():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case list() | dict():
            return _json(name, value)
    raise NotTextError(f"Column {name!r} holds {type(value).__name__}, which cannot be written into a prompt.")


def _json(name: str, value: Any) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError as error:
        raise NotTextError(f"Column {name!r} cannot be written into a prompt: {error}.") from error
