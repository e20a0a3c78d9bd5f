"""Where a task's batch stands in the pool's queue: its priority, its deadline, and with whom it shares a turn.

Priority comes from the first of these that says one:

1. the key ``batch_llm_priority`` of the Dag run's conf: what somebody wants of this one run, a backfill for example;
2. the operator's ``priority``;
3. the extra ``priority`` of the connection: one for all runs, or by run type: ``{"backfill": "low", "manual": 300}``;
4. the type of the Dag run: somebody waits for a ``manual`` one (high), nobody for a ``backfill`` (low), and all others
   (``scheduled``, ``asset_triggered`` …) are normal. The run's id says nothing: a run that a backfill reprocesses keeps
   the id ``scheduled__…``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pendulum
from airflow.sdk import Context

from airflow_batch_llm import clock
from airflow_batch_llm.hooks.airflow_names import AirflowFailException
from airflow_batch_llm.models import GREATEST_PRIORITY, LEAST_PRIORITY, PRIORITIES

Priority = int | str | Callable[[Context], int | str | None]
"""A number from -1000 to 1000, one of the words of ``PRIORITIES``, or what gives one when the task runs."""
Deadline = datetime | timedelta | str

CONF_KEY: Final = "batch_llm_priority"
OF_RUN_TYPE: Final = {"manual": "high", "backfill": "low"}
"""All others are normal."""


@dataclass(frozen=True)
class QueuePlace:
    """As the service takes it; ``deadline`` in seconds since 1970."""

    priority: int = 0
    fair_group: str | None = None
    deadline: int | None = None


def queue_place(
    context: Context, *, priority: Priority | None, deadline: Deadline | None, extra: Mapping[str, Any]
) -> QueuePlace:
    """The place of a task's batch; a callable priority is called here, in the Airflow worker.

    :param extra: the connection's.

    Raises AirflowFailException for what is none.
    """
    return QueuePlace(_priority(context, priority, extra), context["ti"].dag_id, _deadline(deadline))


def as_priority(value: Any) -> int | None:
    """The number that a number or a word stands for; None for what is no priority."""
    if isinstance(value, str):
        text = value.strip().lower()
        value = PRIORITIES.get(text, int(text) if text.removeprefix("-").isdecimal() else None)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if LEAST_PRIORITY <= value <= GREATEST_PRIORITY else None


def what_priorities_are() -> str:
    words = ", ".join(f"{word!r} ({number})" for word, number in PRIORITIES.items())
    return f"a whole number from {LEAST_PRIORITY} to {GREATEST_PRIORITY}, or one of {words}"


def _priority(context: Context, given: Priority | None, extra: Mapping[str, Any]) -> int:
    where, value = next((where, value) for where, value in _said(context, given, extra) if value is not None)
    number = as_priority(value)
    if number is None:
        raise AirflowFailException(f"{where} is {value!r}; it is {what_priorities_are()}. Nothing was submitted.")
    return number


def _said(context: Context, given: Priority | None, extra: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Who may say a priority, and what it says, one after the other: none is asked in vain."""
    run = context.get("dag_run")
    run_type = _run_type(run)
    yield f"The key {CONF_KEY} of the Dag run's conf", (getattr(run, "conf", None) or {}).get(CONF_KEY)
    yield "The task's priority", given(context) if callable(given) else given
    yield "The extra `priority` of the connection", _of_extra(extra, run_type)
    yield "The run type's priority", OF_RUN_TYPE.get(run_type, "normal")


def _run_type(run: Any) -> str:
    """As a word, whatever Airflow gives it as."""
    run_type = getattr(run, "run_type", None)
    return str(getattr(run_type, "value", run_type))


def _of_extra(extra: Mapping[str, Any], run_type: str) -> Any:
    said = _parsed_text(extra.get("priority"))
    if isinstance(said, Mapping):
        return said.get(run_type)
    return None if said == "" else said  # an empty field of the connection's form


def _parsed_text(said: Any) -> Any:
    """The connection's form gives a text, where a priority for each run type is one of JSON."""
    if not isinstance(said, str) or not said.lstrip().startswith("{"):
        return said
    try:
        return json.loads(said)
    except ValueError:
        return said  # which is no priority, and is named as it stands


def _deadline(deadline: Deadline | None) -> int | None:
    if isinstance(deadline, timedelta):
        deadline = clock.now() + deadline
    elif isinstance(deadline, str):
        deadline = _parsed(deadline)
    if deadline is None:
        return None
    if not isinstance(deadline, datetime):
        raise AirflowFailException(_no_deadline(deadline))
    aware = deadline if deadline.tzinfo is not None else deadline.replace(tzinfo=UTC)
    return int(aware.timestamp())


def as_time(text: str) -> datetime | None:
    """The time that a text is; None for what is none."""
    try:
        parsed = pendulum.parse(text.strip())
    except ValueError:
        return None
    return parsed if isinstance(parsed, pendulum.DateTime) else None


def _parsed(text: str) -> datetime:
    parsed = as_time(text)
    if parsed is None:
        raise AirflowFailException(_no_deadline(text))
    return parsed


def _no_deadline(deadline: Any) -> str:
    like = "2026-01-31T08:00:00+00:00"
    return f"Rendered, deadline is {deadline!r}, which is no time such as {like}. Nothing was submitted."
