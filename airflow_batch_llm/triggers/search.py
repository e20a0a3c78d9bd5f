"""Waits in the triggerer for batches that are found by a key, or by the Dag run that they are of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_batch_llm import clock
from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.shared_watch import SharedWatch
from airflow_batch_llm.client.standing import standing
from airflow_batch_llm.client.watch import LONGEST_PAUSE
from airflow_batch_llm.errors import NoAnswerError, RefusedError, UnauthorizedError
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.waiting import ended_batch
from airflow_batch_llm.triggers.batch_llm import patient_client, settle
from airflow_batch_llm.wire import Batch


class BatchLLMSearchTrigger(BaseTrigger):
    """Gives one event when all of the batches have ended: an empty one, or ``{"error"}`` where the service refuses.

    They are the newest generation under ``key``, or of ``group`` the newest batch of each series. While there is none
    it looks again, every ``poll_interval`` seconds. Never cancels anything.
    """

    def __init__(
        self, conn_id: str, *, key: str | None = None, group: str | None = None, poll_interval: float = 5.0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.key = key
        self.group = group
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("conn_id", "key", "group", "poll_interval")
        path = "airflow_batch_llm.triggers.search.BatchLLMSearchTrigger"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, and the end right after it: a trigger that went on would be taken for a killed one."""
        started = clock.now()
        event = {}
        try:
            await self._all_ended()
        except RefusedError as error:
            event = {"error": str(error)}
        await settle(started)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _all_ended(self) -> None:
        """Returns once a look finds batches, and all of them ended: while some were waited for others may have come."""
        while living := [batch for batch in await self._found() if not batch.status.ended]:
            await self._watched(living)

    async def _watched(self, living: list[Batch]) -> None:
        """Returns once they have ended. All are watched from the beginning: some may be paused unless somebody does."""
        watch = SharedWatch.of(self.conn_id, BatchLLMHook(self.conn_id).aget_conn)
        waiting = [asyncio.create_task(ended_batch(watch.snapshots(batch.id), self.log)) for batch in living]
        try:
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _found(self) -> list[Batch]:
        """The batches, once there are any. A token that the connection has no more by then is replaced by its new
        one."""
        while True:
            looked = False
            async with await patient_client(self.conn_id, self.log) as client:
                try:
                    while not (found := await self._answered(client)):
                        looked = True
                        await asyncio.sleep(self.poll_interval)
                except UnauthorizedError:
                    if not looked:
                        raise
                else:
                    return found

    async def _answered(self, client: AsyncBatchClient) -> list[Batch]:
        """The batches that there are, once the service answers."""
        pause = timedelta(seconds=self.poll_interval)
        while True:
            try:
                if self.key is None:
                    return standing([batch async for batch in client.of_group(self.group or "")])
                batch = await client.find(self.key)
            except NoAnswerError as error:
                pause = min(pause * 2, LONGEST_PAUSE)
                self.log.warning("%s Looking again in %.0f s.", error, pause.total_seconds())
                await asyncio.sleep(pause.total_seconds())
            else:
                return [] if batch is None else [batch]
