"""An answer's text as the values of typed columns: strictly read, and nothing bent to fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from airflow_batch_llm.output_schema import OutputField, OutputType

_SHOWN: Final = 40
"""How much of a long number is shown."""


class NotJsonError(ValueError):
    """The text is not JSON."""


class DoesNotFitError(ValueError):
    """The text is JSON that a column cannot hold as it is."""


def read_answer(text: str) -> Any:
    """The value of a JSON text.

    Raises :class:`NotJsonError`, and :class:`DoesNotFitError` for what readers of JSON disagree about: a key that is
    there twice, half a surrogate pair, a number that no 64-bit float comes near.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_no_number
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise NotJsonError(f"The answer is not JSON: {error.msg} at character {error.pos + 1}.") from error
    except UnicodeEncodeError as error:
        raise DoesNotFitError("The answer holds half of a surrogate pair, which is no character.") from error
    except RecursionError as error:
        raise DoesNotFitError("The answer is nested too deep to be read.") from error
    return value


def fitted(answer: Any, fields: Sequence[OutputField], where: str = "") -> dict[str, Any]:
    """The values that the columns of an answer get. Properties that no column is for are left out.

    Raises :class:`DoesNotFitError` where that would change a value: an integer beyond 64 bits, or one in a column of
    64-bit floats that lies between two of them.
    """
    if not isinstance(answer, dict):
        raise DoesNotFitError(f"{_named(where)} is no object.")
    return {
        field.name: _value(answer.get(field.name), field.type, f"{where}.{field.name}" if where else field.name)
        for field in fields
    }


def _value(value: Any, kind: OutputType, where: str) -> Any:
    if value is None:
        return None
    match kind.kind:
        case "object":
            return fitted(value, kind.fields, where)
        case "array":
            return _list(value, kind.items, where)
        case "integer":
            return _whole(value, where)
        case "number":
            return _real(value, where)
    if not isinstance(value, str if kind.kind == "string" else bool):
        raise DoesNotFitError(f"{_named(where)} is no {kind.kind}.")
    return value


def _list(value: Any, items: OutputType | None, where: str) -> list[Any]:
    if not isinstance(value, list) or items is None:
        raise DoesNotFitError(f"{_named(where)} is no array.")
    return [_value(item, items, f"{where}[{place}]") for place, item in enumerate(value)]


def _whole(value: Any, where: str) -> int:
    """JSON Schema counts ``2.0`` among the integers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise DoesNotFitError(f"{_named(where)} is no integer.")
    if not -(2**63) <= value < 2**63:
        raise DoesNotFitError(f"{_named(where)} is {_short(value)}, which 64 bits cannot hold.")
    return int(value)


def _real(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DoesNotFitError(f"{_named(where)} is no number.")
    try:
        exact = float(value) == value
    except OverflowError:
        exact = False
    if not exact:
        raise DoesNotFitError(f"{_named(where)} is {_short(value)}, which no 64-bit float is exactly.")
    return float(value)


def _named(where: str) -> str:
    return f"{where!r} in the answer" if where else "The answer"


def _short(value: float) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} digits)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DoesNotFitError(f"The answer has the key {twice[:_SHOWN]!r} twice in one object.")
    return found


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DoesNotFitError(f"The answer has the number {text[:_SHOWN]}, which is beyond all 64-bit floats.")
    return value


def _int(text: str) -> int:
    if len(text) > 400:
        raise DoesNotFitError(f"The answer has an integer of {len(text):,} digits, which is beyond all 64-bit floats.")
    return int(text)


def _no_number(text: str) -> Any:
    raise NotJsonError(f"The answer is not JSON: {text} is no number there.")
