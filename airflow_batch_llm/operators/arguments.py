"""Checks of an operator's arguments that need no service, so that a wrong Dag fails when it is parsed.

A template field is judged only where it holds no template and no reference to another task's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from airflow_batch_llm.wire import Message

FORMATS: Final = (".parquet", ".jsonl", ".csv")
LEAST_PRIORITY: Final = -1000
GREATEST_PRIORITY: Final = 1000

_MESSAGES: Final = TypeAdapter(list[Message])


def check_place(name: str, place: Any) -> None:
    """Whether a source or target ends like a table that the service reads and writes."""
    if not isinstance(place, str) or _is_template(place):
        return
    if PurePosixPath(place).suffix.lower() not in FORMATS:
        raise ValueError(f"{name} is {place!r}, which does not end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def as_messages(
    *, prompt: str | None, messages: Sequence[Mapping[str, str]] | None, system_prompt: str | None
) -> list[Message]:
    """The conversation that every row becomes, from either ``prompt`` (and ``system_prompt``) or ``messages``."""
    if (prompt is None) == (messages is None):
        raise ValueError("Give either prompt or messages: one of the two, and not both.")
    if messages is not None:
        if system_prompt is not None:
            raise ValueError('system_prompt goes with prompt. Among messages it is one with the role "system".')
        return _checked_messages(messages)
    first = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return _checked_messages([*first, {"role": "user", "content": prompt}])


def as_parameters(explicit: Mapping[str, Any], further: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sampling parameters from the operator's own arguments and its ``parameters``; none may come from both."""
    given = {name: value for name, value in explicit.items() if value is not None}
    both = sorted(set(given) & set(further or {}))
    if both:
        raise ValueError(f"{both[0]} is given twice: as an argument and in parameters.")
    _check_range("max_tokens", given, least=1)
    _check_range("temperature", given, least=0)
    _check_range("top_p", given, least=0, most=1)
    return {**given, **(further or {})}


def check_choices(choices: Sequence[str] | None) -> None:
    if choices is None:
        return
    if isinstance(choices, str) or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("choices must be a list of texts, none of them empty.")
    if len(choices) < 2:
        raise ValueError(f"choices has {len(choices)} entry: an answer needs at least two to choose from.")
    twice = sorted({choice for choice in choices if list(choices).count(choice) > 1})
    if twice:
        raise ValueError(f"choices has {twice[0]!r} more than once.")


def check_constants(constants: Any) -> None:
    """Whether constants have names that a placeholder can name, and plain values."""
    if not isinstance(constants, Mapping):
        return
    for name, value in constants.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"The constant {name!r} has no name that a placeholder could name, such as {{day}}.")
        if isinstance(value, (Mapping, list, tuple, set)) or value is None:
            raise ValueError(f"The constant {name!r} is a {type(value).__name__}: only text, numbers and booleans go.")


def check_priority(priority: int) -> None:
    if not LEAST_PRIORITY <= priority <= GREATEST_PRIORITY:
        raise ValueError(f"priority is {priority}, and must lie between {LEAST_PRIORITY} and {GREATEST_PRIORITY}.")


def check_waiting(*, poll_interval: float, timeout: timedelta | None, inline_wait: float) -> None:
    if poll_interval <= 0:
        raise ValueError(f"poll_interval is {poll_interval} s, and must be more than 0.")
    if inline_wait < 0:
        raise ValueError(f"inline_wait is {inline_wait} s, and must not be negative.")
    if timeout is not None and (not isinstance(timeout, timedelta) or timeout <= timedelta(0)):
        raise ValueError(f"timeout is {timeout!r}, and must be a timedelta of more than 0, or None.")


def _checked_messages(messages: Any) -> list[Message]:
    try:
        checked = _MESSAGES.validate_python(messages)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"The messages cannot be used: {first['msg']} (at {place or 'the list'}).") from error
    if not checked:
        raise ValueError("messages is empty: a row needs at least one message.")
    return checked


def _check_range(name: str, given: Mapping[str, Any], *, least: float, most: float | None = None) -> None:
    value = given.get(name)
    if value is None:
        return
    if not isinstance(value, (int, float)) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} is {value!r}, and must be a number of {limits}.")


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text
