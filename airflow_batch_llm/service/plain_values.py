"""Refuses values that a store, a JSON text or a response cannot hold, before a route sees them."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from fastapi import Request

from airflow_batch_llm.errors import InvalidRequestError

MOST_LEVELS: Final = 64
"""How deep a body may nest: far more than any request has, and far from where Python gives up writing it."""

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
"""U+0000, which Postgres cannot store, and halves of surrogate pairs, which are no text in UTF-8."""

_TEXTS: Final = "dataset.constants."
"""Where a number becomes a text of the prompt. All others reach the store or an engine, which know 64 bits."""


async def only_plain_values(request: Request) -> None:
    """A dependency of the whole application that looks through the path, the query and a JSON body.

    It is asynchronous so that it needs no thread, and walks without recursion, for what it is to find is depth too.
    """
    for name, value in request.path_params.items():
        _check(value, name)
        _check_number(value, name)
    for name, value in request.query_params.multi_items():
        _check(name, "query")
        _check(value, name)
    if hasattr(request, "_json"):  # only if a body was read as JSON: asking for it would read an upload
        _check_body(request._json)


def _check_body(body: Any) -> None:
    left: list[tuple[Any, str, int]] = [(body, "", 0)]
    while left:
        value, place, level = left.pop()
        if level > MOST_LEVELS:
            raise _refused("body", f"nests deeper than {MOST_LEVELS} levels")
        if isinstance(value, dict):
            for name in value:
                _check(name, place or "body")
            left += [(inner, f"{place}.{name}".lstrip("."), level + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(inner, f"{place}.{number}".lstrip("."), level + 1) for number, inner in enumerate(value)]
        else:
            _check(value, place or "body")
            if isinstance(value, int) and not place.startswith(_TEXTS):
                _check_range(value, place or "body")


def _check(value: Any, place: str) -> None:
    if isinstance(value, str) and (found := _UNSTORABLE.search(value)):
        what = f"U+{ord(found[0]):04X} at position {found.start()}"
        raise _refused(place, f"holds {what}, which is not a character that can be stored")
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(place, f"is {value}, which is not a number in JSON")


def _check_number(text: str, place: str) -> None:
    """A number in a path is the number of a thing, and those have 64 bits."""
    try:
        number = int(text)
    except ValueError:
        return
    _check_range(number, place)


def _check_range(number: int, place: str) -> None:
    if not -(2**63) <= number < 2**63:
        raise _refused(place, "is a number that does not fit in 64 bits")


def _refused(place: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{place}` {what}. Nothing was done.", code="invalid_value", param=place)
