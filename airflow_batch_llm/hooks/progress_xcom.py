"""How far a batch is, as the XCom ``progress`` of the task that waits for it: readable also while that is deferred.

It is shown, and nothing rests on it: what cannot be written is left out, with a line of the level debug.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, Self
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async

from airflow_batch_llm import clock
from airflow_batch_llm.client.texts import rows_so_far
from airflow_batch_llm.wire import Batch

KEY: Final = "progress"
BETWEEN: Final = timedelta(seconds=30)
"""Least time between two values of one task."""
PAUSE: Final = 0.2
"""Seconds between two writes of a process that waits for many batches: each is a call of Airflow's API server."""

Tell = Callable[[Batch], None]
"""Takes a batch as it stands."""


def nobody(batch: Batch) -> None:
    """Tells nobody."""


class Log(Protocol):
    def debug(self, event: str, *args: Any, exc_info: bool = ...) -> Any: ...


def progress_value(batch: Batch, *, now: datetime) -> dict[str, Any]:
    """What the XCom says, in JSON types. ``at`` is the time of the look, ``eta_seconds`` may be unknown (None)."""
    total, done, failed = rows_so_far(batch)
    return {
        "batch_id": batch.id,
        "status": batch.status.value,
        "rows_total": total,
        "rows_done": done,
        "rows_failed": failed,
        "rows_reused": batch.progress.rows_reused,
        "tokens_per_second": batch.progress.tokens_per_second,
        "eta_seconds": batch.progress.eta_seconds,
        "at": now.isoformat(timespec="seconds"),
    }


class Paced:
    """Hands a batch's progress on to ``write``: at the first look, and when it moved, every 30 s at most."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write
        self._said: tuple[Any, ...] | None = None
        self._next_at: datetime | None = None

    def saw(self, batch: Batch, *, now: datetime) -> None:
        seen = batch.id, batch.status, *rows_so_far(batch)
        if seen == self._said or (self._next_at is not None and now < self._next_at):
            return
        self._said, self._next_at = seen, now + BETWEEN
        self._write(progress_value(batch, now=now))


def pushed(ti: Any, log: Log) -> Tell:
    """Writes the progress of the batch that a task waits for in a worker."""
    paced = Paced(lambda value: _push(ti, value, log))
    return lambda batch: paced.saw(batch, now=clock.now())


def push_end(ti: Any, batch: Batch, log: Log) -> None:
    """Writes how a batch ended, whenever the last value was written."""
    _push(ti, progress_value(batch, now=clock.now()), log)


@contextmanager
def sent_by_trigger(ti: Any, log: Log) -> Iterator[Tell]:
    """Writes the progress of the batch that a trigger waits for; ``ti`` is the trigger's task instance.

    All triggers of an event loop share one writer, so that a value of a task may come late. What is not yet written
    when the trigger ends is not written any more.
    """
    if ti is None:  # switched off, or outside Airflow
        yield nobody
        return
    place = Place(ti.dag_id, ti.task_id, ti.run_id, -1 if ti.map_index is None else ti.map_index)
    writer = SharedWriter.of_running_loop()
    paced = Paced(lambda value: writer.put(place, value, log))
    try:
        yield lambda batch: paced.saw(batch, now=clock.now())
    finally:
        writer.drop(place)


@dataclass(frozen=True)
class Place:
    """The task instance whose XCom it is."""

    dag_id: str
    task_id: str
    run_id: str
    map_index: int


@dataclass
class SharedWriter:
    """Writes the newest value of each of any number of tasks: one after the other, five a second at most.

    Its calls go on when a trigger is cancelled: before Airflow 3.3 a call that breaks off puts the answers of all
    that come after it out of order.
    """

    _waiting: dict[Place, _Value] = field(default_factory=dict)
    """In the order in which they began to wait; a newer value takes the place of the one before."""
    _writing: asyncio.Task[None] | None = None

    @classmethod
    def of_running_loop(cls) -> Self:
        writer: Self = _WRITERS.setdefault(asyncio.get_running_loop(), cls())  # type: ignore[assignment]
        return writer

    def put(self, place: Place, value: dict[str, Any], log: Log) -> None:
        # Airflow 3.4 finds the task that a call is for in the context of its trigger, and so does the trigger's log.
        self._waiting[place] = _Value(value, log, contextvars.copy_context())
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all(), context=contextvars.Context())

    def drop(self, place: Place) -> None:
        self._waiting.pop(place, None)

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            place = next(iter(self._waiting))
            waiting = self._waiting.pop(place)
            await loop.create_task(_set(place, waiting), context=waiting.context)
            await asyncio.sleep(PAUSE)


_WRITERS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, SharedWriter]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Value:
    value: dict[str, Any]
    log: Log
    context: contextvars.Context


async def _set(place: Place, waiting: _Value) -> None:
    try:
        from airflow.sdk.execution_time.xcom import XCom

        # In a thread, since a backend for XComs may write to a bucket; in one that other triggers do not wait for.
        await sync_to_async(XCom.set, thread_sensitive=False)(KEY, waiting.value, **vars(place))
    except Exception:
        waiting.log.debug("The XCom %r was not written.", KEY, exc_info=True)


def _push(ti: Any, value: dict[str, Any], log: Log) -> None:
    try:
        ti.xcom_push(key=KEY, value=value)
    except Exception:
        log.debug("The XCom %r was not written.", KEY, exc_info=True)
