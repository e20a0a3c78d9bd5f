"""Checks of an operator's arguments that need no service, so that a wrong Dag fails when it is parsed.

A template field is judged only where it holds no template and no reference to another task's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from airflow_batch_llm.client.plain_server import KEY
from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS
from airflow_batch_llm.operators.inline_rows import InlineRows, json_lines
from airflow_batch_llm.operators.queue_place import as_priority, as_time, what_priorities_are
from airflow_batch_llm.wire import (
    GREATEST_UNWATCHED,
    LEAST_UNWATCHED,
    MOST_CANARY_ROWS,
    CompletionWindow,
    Message,
)

ENDINGS: Final[Mapping[str, tuple[str, str]]] = {
    ".parquet": ("parquet", ""),
    ".jsonl": ("jsonl", "none"),
    ".csv": ("csv", "none"),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".csv.gz": ("csv", "gzip"),
    ".csv.zst": ("csv", "zstd"),
}
"""What a file's ending says: the format, and the compression where it says that too."""
FORMATS: Final = ("parquet", "jsonl", "csv")
COMPRESSIONS: Final = ("none", "gzip", "zstd")
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "reuse": ("auto", "never"),
    "on_clear": ("rerun", "reuse"),
    "on_changed": ("resubmit", "fail"),
}

MOST_METADATA: Final = 15
"""OpenAI takes 16 pairs, and one is ours on servers that know no keys."""

_MESSAGES: Final = TypeAdapter(list[Message])
_WINDOW: Final = TypeAdapter(CompletionWindow)


def check_kind(
    *, source: Any, input_file_id: Any, endpoint: str | None, dry_run: bool, table: Mapping[str, Any]
) -> None:
    """Whether the arguments are those of a table or those of a request file; ``table`` has what only a table takes."""
    if (source is None) == (input_file_id is None):
        raise ValueError(
            "Give either source (a table) or input_file_id (an uploaded request file): one of the two, and not both."
        )
    if source is None:
        _check_request_file(input_file_id, table)
        return
    for name in ("model",) if dry_run else ("target", "model"):
        if table[name] is None:
            raise ValueError(f"{name} is missing: a table has a source, a target and a model.")
    if endpoint not in (None, CHAT_COMPLETIONS, EMBEDDINGS):
        raise ValueError(f"endpoint is {endpoint!r}; a table is for {CHAT_COMPLETIONS} or {EMBEDDINGS}.")


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


def check_source(source: Any) -> None:
    """Whether a source can be one: a place or several, rows, or something that is known only when the task runs."""
    if isinstance(source, InlineRows):
        for _ in json_lines(source.rows):
            pass
    elif isinstance(source, str):
        _check_place("source", source, patterns=True)
    elif isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("source is an empty list: there is nothing to ask.")
        if any(isinstance(place, Mapping) for place in source):
            raise ValueError("source has rows (mappings) and other things in one list: give one or the other.")
        for place in source:
            if isinstance(place, str):
                _check_place("source", place, patterns=True)
    elif isinstance(source, (Mapping, int, float, bytes)):
        raise ValueError(  # noqa: TRY004 (a wrong argument of a Dag is one kind of error)
            f"source is a {type(source).__name__}; it must be a place or several, rows (a list of mappings) or a "
            "SQLSource."
        )


def check_target(target: Any, *, format: str | None, compression: str | None) -> None:  # noqa: A002 (the argument's name)
    """Whether a target ends like one, and ``format`` and ``compression`` say what its ending says."""
    for name, value, known in (("format", format, FORMATS), ("compression", compression, COMPRESSIONS)):
        if value is not None and value not in known:
            raise ValueError(f"{name} is {value!r}; it is one of: {', '.join(known)}.")
    if target is not None and not isinstance(target, str):
        if isinstance(target, (list, tuple, Mapping)):
            raise ValueError(f"target is a {type(target).__name__}; it is one place: a file, or a folder ending in /.")
        return
    if target is None or is_template(target):
        return
    _check_place("target", target, patterns=False)
    if (ending := _ending(target)) is None:
        return
    said_format, said_compression = ENDINGS[ending]
    if format not in (None, said_format):
        raise ValueError(f"target is {target!r} and format is {format!r}: the ending says {said_format}.")
    if said_compression and compression not in (None, said_compression):
        raise ValueError(f"target is {target!r} and compression is {compression!r}: the ending says another.")


def check_quarantine(quarantine: Any, target: Any, *, format: str | None) -> None:  # noqa: A002 (the argument's name)
    """Whether a quarantine is a file in the target's format, and another than the target."""
    if not isinstance(quarantine, str) or is_template(quarantine):
        if isinstance(quarantine, (list, tuple, Mapping)):
            raise ValueError(f"quarantine is a {type(quarantine).__name__}; it is one file.")
        return
    ending = _ending(quarantine)
    if ending is None or quarantine.endswith("/"):
        raise ValueError(f"quarantine is {quarantine!r}; it is one file, which ends in one of {', '.join(ENDINGS)}.")
    if not isinstance(target, str) or is_template(target):
        return
    if quarantine == target:
        raise ValueError(f"quarantine is {quarantine!r}, which is the target: give it a place of its own.")
    found = _ending(target)
    kind = format or "parquet" if found is None else ENDINGS[found][0]
    if ENDINGS[ending][0] != kind:
        raise ValueError(f"quarantine is {quarantine!r} and the target is {kind}: both have one format.")


def _check_place(name: str, place: str, *, patterns: bool) -> None:
    """Whether a place ends like a table that the service reads or writes, or like a folder."""
    if is_template(place) or place.endswith("/") or (patterns and any(mark in place for mark in "*?")):
        return
    if _ending(place) is None:
        hint = " An uploaded request file is given as input_file_id." if place.startswith("file-") else ""
        known = ", ".join(ENDINGS)
        more = ", and is no folder (which ends in /) and no pattern" if patterns else ", and is no folder (ends in /)"
        raise ValueError(f"{name} is {place!r}, which does not end in one of {known}{more}.{hint}")


def _ending(place: str) -> str | None:
    name = PurePosixPath(place).name.lower()
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.endswith(ending)), None)


def check_passthrough(passthrough: Any) -> None:
    if passthrough is None:
        return
    if isinstance(passthrough, str) or not all(isinstance(column, str) for column in passthrough):
        raise ValueError(f"passthrough is {passthrough!r}; it is a list of the source's columns.")


def check_word(name: str, value: Any) -> None:
    if value not in WORDS[name]:
        raise ValueError(f"{name} is {value!r}; it is {' or '.join(map(repr, WORDS[name]))}.")


def check_typed(*, choices: Any, output_type: Any, n: int | None) -> None:
    if choices is not None and output_type is not None:
        raise ValueError("Give either choices or output_type: an answer is one of some texts, or an object.")
    if (n or 1) != 1 and (choices is not None or output_type is not None):
        raise ValueError(f"n is {n}: several answers a row go with plain text, not with choices or output_type.")


def check_dry_run(
    *, dry_run: bool, source: Any, budget: Mapping[str, Any], overwrite: bool, wait_for_completion: bool
) -> None:
    """Whether what is given besides makes sense for a batch that is only estimated."""
    if not dry_run:
        return
    if source is None:
        raise ValueError("dry_run goes with source: a request file is not estimated.")
    if not wait_for_completion:
        raise ValueError("dry_run waits for its estimate, which is the task's result: leave out wait_for_completion.")
    given = [name for name, value in budget.items() if value is not None] + ["overwrite"] * overwrite
    if given:
        raise ValueError(f"{given[0]} has no meaning for a dry_run: it runs no rows and writes no target.")


def check_budget(
    *,
    max_error_rate: float | None,
    max_errors: int | None,
    max_invalid_rate: float | None,
    wait_for_completion: bool,
    fits: bool,
) -> None:
    """Whether the limits are ones; ``fits`` says whether there is something that an answer may not fit."""
    for name, rate in (("max_error_rate", max_error_rate), ("max_invalid_rate", max_invalid_rate)):
        if rate is not None and not (_is_number(rate) and 0 <= rate <= 1):
            raise ValueError(f"{name} is {rate!r}, and must be a number between 0 and 1.")
    if max_invalid_rate is not None and not fits:
        raise ValueError("max_invalid_rate goes with choices or output_type: any other answer fits.")
    if max_errors is not None and not (_is_number(max_errors) and isinstance(max_errors, int) and max_errors >= 0):
        raise ValueError(f"max_errors is {max_errors!r}, and must be a whole number of at least 0.")
    if not wait_for_completion and (max_error_rate, max_errors, max_invalid_rate) != (None, None, None):
        raise ValueError(
            "max_error_rate, max_errors and max_invalid_rate need wait_for_completion: nobody would look at the "
            "outcome."
        )


def check_canary(
    *, canary_rows: Any, canary_check: Any, limits: Mapping[str, Any], wait_for_completion: bool, dry_run: bool
) -> None:
    """Whether there is something that the first rows can be judged by, and somebody who does."""
    if canary_rows is None:
        if canary_check is not None:
            raise ValueError("canary_check goes with canary_rows, which says how many rows it gets.")
        return
    if not isinstance(canary_rows, int) or isinstance(canary_rows, bool) or not 1 <= canary_rows <= MOST_CANARY_ROWS:
        raise ValueError(f"canary_rows is {canary_rows!r}, and must be a whole number from 1 to {MOST_CANARY_ROWS:,}.")
    if canary_check is not None and not callable(canary_check):
        raise ValueError(f"canary_check is {canary_check!r}; it is a function of a list of rows.")
    if canary_check is None and all(limit is None for limit in limits.values()):
        raise ValueError(f"canary_rows needs canary_check or one of {', '.join(limits)}: nothing else judges the rows.")
    if dry_run or not wait_for_completion:
        raise ValueError("canary_rows needs a task that waits for its batch: nobody else would judge the rows.")


def check_outlets(outlets: Sequence[Any], *, wait_for_completion: bool) -> None:
    if outlets and not wait_for_completion:
        raise ValueError(
            "outlets need wait_for_completion: when the task ends the target is not there yet, and who waits for the "
            "asset would begin too soon. Give them to the BatchLLMSensor that waits for the batch."
        )


def check_unwatched(pause_unwatched_after: Any) -> None:
    if pause_unwatched_after is None:
        return
    least, greatest = timedelta(seconds=LEAST_UNWATCHED), timedelta(seconds=GREATEST_UNWATCHED)
    if not isinstance(pause_unwatched_after, timedelta) or not least <= pause_unwatched_after <= greatest:
        raise ValueError(
            f"pause_unwatched_after is {pause_unwatched_after!r}, and must be a timedelta of at least "
            f"{LEAST_UNWATCHED // 60} minutes and at most {greatest.days} days."
        )


def as_input(prompt: Any, chat: Mapping[str, Any]) -> str:
    """The text that is embedded of every row; ``chat`` has the arguments that only chat completions take."""
    given = [name for name, value in chat.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} goes with {CHAT_COMPLETIONS}; {EMBEDDINGS} takes prompt, the text to embed.")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt is {prompt!r}; for {EMBEDDINGS} it is the template of the text to embed.")
    return prompt


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
    if further is not None and not isinstance(further, Mapping):
        raise ValueError(f"parameters is {further!r}; it is a dictionary, such as {{'stop': ['\\n']}}.")
    given = {name: value for name, value in explicit.items() if value is not None}
    both = sorted(set(given) & set(further or {}))
    if both:
        raise ValueError(f"{both[0]} is given twice: as an argument and in parameters.")
    _check_range("max_tokens", given, least=1)
    _check_range("temperature", given, least=0)
    _check_range("top_p", given, least=0, most=1)
    _check_range("n", given, least=1)
    joined = {**given, **(further or {})}
    if (joined.get("n") or 1) > 1 and not joined.get("temperature"):
        raise ValueError(
            f"n is {joined['n']} and temperature is 0 (which it is unless given): all answers of a row would be the "
            "same. Give a temperature above 0."
        )
    return joined


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


def check_priority(priority: Any) -> None:
    if priority is not None and not callable(priority) and as_priority(priority) is None:
        raise ValueError(f"priority is {priority!r}; it is {what_priorities_are()}, or a callable that gives one.")


def check_deadline(deadline: Any) -> None:
    if isinstance(deadline, timedelta) and deadline <= timedelta(0):
        raise ValueError(f"deadline is {deadline!r}: a timedelta is counted from the submit, and is more than 0.")
    no_date = isinstance(deadline, date) and not isinstance(deadline, datetime)
    no_text = isinstance(deadline, str) and not is_template(deadline) and as_time(deadline) is None
    if no_date or no_text or isinstance(deadline, (int, float, Mapping, list, tuple)):
        raise ValueError(f"deadline is {deadline!r}; it is a datetime, a timedelta or a text such as 2026-01-31T08:00.")


def check_waiting(*, poll_interval: float, timeout: timedelta | None, inline_wait: float) -> None:
    for name, seconds in (("poll_interval", poll_interval), ("inline_wait", inline_wait)):
        if not _is_number(seconds):
            raise ValueError(f"{name} is {seconds!r}, and must be a number of seconds.")
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_template(text: str) -> bool:
    return "{{" in text or "{%" in text
