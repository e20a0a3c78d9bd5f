"""Rows that a Dag or another task hands over as Python values, as a file of JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PLAIN = (str, bool, int, type(None))


@dataclass(frozen=True)
class InlineRows:
    """Rows as they were given. Their texts are no templates: data has stray braces."""

    rows: Sequence[Mapping[str, Any]]

    def serialize(self) -> list[dict[str, Any]]:
        """What Airflow shows of them beside the task."""
        return [dict(row) for row in self.rows]


def write_rows(rows: Sequence[Any], path: Path) -> None:
    with path.open("wb") as stream:
        stream.writelines(json_lines(rows))


def json_lines(rows: Sequence[Any]) -> Iterator[bytes]:
    """One line per row. Raises ValueError for a row that JSON cannot carry as it is, with its number and column."""
    if not rows:
        raise ValueError("The source is a list without rows: there is nothing to ask. Nothing was submitted.")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(  # noqa: TRY004 (a wrong argument of a Dag is one kind of error)
                f"Row {number} of the source is a {type(row).__name__}; every row must be a mapping from column names "
                "to values. Nothing was submitted."
            )
        for column, value in row.items():
            _check(column, value, number)
        yield _line(row, number)


def _line(row: Mapping[str, Any], number: int) -> bytes:
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Row {number} of the source holds text that is no Unicode ({error.reason}). Nothing was submitted."
        ) from error


def _check(column: Any, value: Any, number: int) -> None:
    if not isinstance(column, str) or not column:
        raise ValueError(
            f"Row {number} of the source has a column named {column!r}; names are texts. Nothing was submitted."
        )
    if (wrong := _not_json(value)) is not None:
        raise ValueError(
            f"Row {number} of the source has {wrong} in column {column!r}, which JSON cannot carry: only text, "
            "numbers, booleans, None, lists and dicts go. Nothing was submitted. Write it as text or a number."
        )


def _not_json(value: Any) -> str | None:
    """What in the value JSON cannot carry; None if it can."""
    if isinstance(value, _PLAIN):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"the float {value}"
    if isinstance(value, Mapping):
        if strange := [name for name in value if not isinstance(name, str)]:
            return f"a dict with the key {strange[0]!r}"
        return next(filter(None, map(_not_json, value.values())), None)
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_not_json, value)), None)
    return f"a {type(value).__name__}"
