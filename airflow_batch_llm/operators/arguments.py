"""Checks of an operator's arguments that need no service, so that a wrong Dag fails when it is parsed.

A template field is judged only where it holds no template and no reference to another task's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from airflow_batch_llm.client.plain_server import KEY
from airflow_batch_llm.wire import CompletionWindow, Message

FORMATS: Final = (".parquet", ".jsonl", ".csv")
LEAST_PRIORITY: Final = -1000
GREATEST_PRIORITY: Final = 1000

MOST_METADATA: Final = 15
"""OpenAI takes 16 pairs, and one is ours on servers that know no keys."""

_MESSAGES: Final = TypeAdapter(list[Message])
_WINDOW: Final = TypeAdapter(CompletionWindow)


def check_kind(*, source: Any, input_file_id: Any, endpoint: str | None, table: Mapping[str, Any]) -> None:
    """Whether the arguments are those of a table or those of a request file; ``table`` has what only a table takes."""
    if (source is None) == (input_file_id is None):
        raise ValueError(
            "Give either source (a table) or input_file_id (an uploaded request file): one of the two, and not both."
        )
    if source is None:
        _check_request_file(input_file_id, table)
        return
    for name in ("target", "model"):
        if table[name] is None:
            raise ValueError(f"{name} is missing: a table has a source, a target and a model.")
    if endpoint is not None:
        raise ValueError("endpoint goes with input_file_id; a table is for chat completions.")


def _check_request_file(input_file_id: Any, table: Mapping[str, Any]) -> None:
    given = [name for name, value in table.items() if value is not None]
    if given:
        raise ValueError(
            f"{given[0]} goes with source; a request file (input_file_id) says in its own lines what is asked of "
            "which model."
        )
    if isinstance(input_file_id, str) and not input_file_id.strip():
        raise ValueError("input_file_id is empty; it is the id of an uploaded request file, such as file-abc123.")


def check_completion_window(window: str | None) -> None:
    try:
        _WINDOW.validate_python(window or "24h")
    except ValidationError as error:
        raise ValueError(f"completion_window is {window!r}; it looks like 30m, 24h or 7d.") from error


def check_metadata(metadata: Any) -> None:
    """Whether the metadata is what OpenAI's API takes."""
    if not isinstance(metadata, Mapping):
        return
    if len(metadata) > MOST_METADATA:
        raise ValueError(f"metadata has {len(metadata)} pairs, and at most {MOST_METADATA} go.")
    for name, value in metadata.items():
        if name == KEY:
            raise ValueError(f"metadata has {KEY!r}, which is where the operator notes its own key.")
        if not isinstance(name, str) or not isinstance(value, str) or len(name) > 64 or len(value) > 512:
            raise ValueError(f"metadata has {name!r}: names are texts of at most 64 characters, values of at most 512.")


def check_place(name: str, place: Any) -> None:
    """Whether a source or target ends like a table that the service reads and writes."""
    if not isinstance(place, str) or _is_template(place):
        return
    if PurePosixPath(place).suffix.lower() not in FORMATS:
        hint = " An uploaded request file is given as input_file_id." if place.startswith("file-") else ""
        raise ValueError(
            f"{name} is {place!r}, which does not end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.{hint}"
        )


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
