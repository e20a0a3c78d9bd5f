"""Waiting for a batch's end with its progress in the task's log: the same in a worker and in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from airflow_batch_llm import clock
from airflow_batch_llm.client.texts import progress_line
from airflow_batch_llm.client.watch import Watch
from airflow_batch_llm.hooks.address import ServiceAddress
from airflow_batch_llm.hooks.progress_xcom import Tell, nobody
from airflow_batch_llm.models import BatchStatus, PauseReason
from airflow_batch_llm.wire import Batch

QUIET: Final = timedelta(seconds=30)
"""Least time between two lines of progress, so that a batch of a day does not fill the log."""


class Log(Protocol):
    """What logging's and structlog's loggers have in common here."""

    def info(self, event: str, *args: Any) -> Any: ...


class ProgressLog:
    """Writes how far a batch is: at the first look, at a new status, and else when it moved, every 30 s at most."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._status: BatchStatus | None = None
        self._line = ""
        self._next_at: datetime | None = None

    def saw(self, batch: Batch, *, now: datetime) -> None:
        line = progress_line(batch)
        moved = line != self._line and (self._next_at is None or now >= self._next_at)
        if moved or batch.status != self._status:
            self._log.info("%s", line)
            self._status, self._line, self._next_at = batch.status, line, now + QUIET


async def ended_batch(snapshots: AsyncGenerator[Batch], log: Log, tell: Tell = nobody, *, gated: bool = False) -> Batch:
    """The batch, once it ended, or (if ``gated``) waits for the verdict on its first rows; ``tell`` is told of each
    look before. A service that does not answer is waited for."""
    progress = ProgressLog(log)
    async with aclosing(snapshots):
        async for batch in snapshots:
            progress.saw(batch, now=clock.now())
            if gated and batch.paused == PauseReason.CANARY:
                break
            if not batch.status.ended:
                tell(batch)
    return batch


def wait_here(
    address: ServiceAddress,
    batch_id: str,
    *,
    poll_interval: timedelta,
    at_most: timedelta | None,
    log: Log,
    tell: Tell = nobody,
    gated: bool = False,
) -> Batch | None:
    """Blocks until the batch ends, or (if ``gated``) waits for the verdict on its first rows, and gives it; None if
    that takes longer than ``at_most``."""

    async def waiting() -> Batch | None:
        async with address.async_client() as client:
            try:
                async with asyncio.timeout(at_most.total_seconds() if at_most is not None else None):
                    snapshots = Watch(client, batch_id, poll_interval).snapshots()
                    return await ended_batch(snapshots, log, tell, gated=gated)
            except TimeoutError:
                return None

    return asyncio.run(waiting())
