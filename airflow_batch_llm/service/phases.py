"""The phases of a batch's life, from the times that its record has. Looks at no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from airflow_batch_llm.page_wire import Phase

Name = Literal["planning", "waiting", "running", "assembling"]
_ENDS: Final = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def phases(record: Mapping[str, Any], first_commit: float | None) -> list[Phase]:
    """The phases that a stored batch has come to, each up to the next one; the last one of a living batch is open.

    A batch that failed or was cancelled before it had a plan has planned alone. One whose rows all had their result
    with the plan has neither waited nor run. What was committed after a batch's time was up is no phase of its own.
    """
    begins = _begins(record, first_commit)
    ends = [at for _, at in begins[1:]]
    return [
        Phase(name=name, started_at=at, ended_at=end)
        for (name, at), end in zip(begins, [*ends, _ended_at(record)], strict=True)
    ]


def _begins(record: Mapping[str, Any], first_commit: float | None) -> list[tuple[Name, float]]:
    """When each phase began."""
    begins: list[tuple[Name, float]] = [("planning", record["created_at"])]
    planned, assembling = record["in_progress_at"], record["finalizing_at"]
    if planned is not None and record["chunks_total"]:
        begins.append(("waiting", planned))
        if first_commit is not None and (assembling is None or first_commit < assembling):
            begins.append(("running", first_commit))
    if assembling is not None:
        begins.append(("assembling", assembling))
    return begins


def _ended_at(record: Mapping[str, Any]) -> float | None:
    return next((record[name] for name in _ENDS if record[name] is not None), None)
