"""What a task notes with its batch, so that a later try can tell whether it still is the batch that it wants.

The note is one pair of the batch's metadata. The service does not read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final, Self
from uuid import UUID

from airflow_batch_llm.operators.inline_rows import InlineRows, json_lines
from airflow_batch_llm.operators.sql_source import SQLSource
from airflow_batch_llm.wire import Batch

NOTE: Final = "batch_llm_task"
"""The name of the pair."""


@dataclass(frozen=True)
class Note:
    """``clears`` counts how often tasks of the Dag run had been cleared when the batch was submitted; ``source`` is a
    hash of what the Dag says of rows that the task uploads itself (None for other sources, and where it is unknown)."""

    clears: int = 0
    source: str | None = None

    @classmethod
    def of(cls, batch: Batch) -> Self:
        try:
            noted = json.loads((batch.metadata or {}).get(NOTE, "{}"))
            return cls(int(noted.get("clears", 0)), noted.get("source"))
        except (ValueError, TypeError, AttributeError):
            return cls()  # somebody else's

    def metadata(self) -> dict[str, str]:
        said = {name: value for name, value in vars(self).items() if value}
        return {NOTE: json.dumps(said)} if said else {}


def source_hash(source: Any) -> str | None:
    """A hash of rows that a Dag gives, or of a query; None for a source that the service reads by itself."""
    if isinstance(source, InlineRows):
        return _rows_hash(source)
    if isinstance(source, SQLSource):
        return hash_of([source.conn_id, source.sql, source.parameters])
    return None


def _rows_hash(source: InlineRows) -> str | None:
    try:
        return _hash(json_lines(source.rows))
    except ValueError:
        return None  # they are no rows, which is said when they are to be uploaded


def hash_of(value: Any) -> str | None:
    """A hash of plain JSON values, dates, decimals and UUIDs; None for others, whose text may be another each time."""
    try:
        return _hash([json.dumps(value, sort_keys=True, default=_text).encode()])
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, (date, time, timedelta, Decimal, UUID)):
        return f"{type(value).__name__} {value}"
    raise TypeError(f"{type(value).__name__} has no text of its own.")


def _hash(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:32]
