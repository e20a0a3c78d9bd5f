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
from airflow_batch_llm.errors import NoAnswerError, RefusedError
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.waiting import ended_batch
from airflow_batch_llm.triggers.batch_llm import settle
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
            async with await BatchLLMHook(self.conn_id).aget_conn() as client:
                await self._all_ended(client)
        except RefusedError as error:
            event = {"error": str(error)}
        await settle(started)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _all_ended(self, client: AsyncBatchClient) -> None:
        """Returns once a look finds batches, and all of them ended: while some were waited for others may have come."""
        while True:
            found = await self._found(client)
            living = [batch for batch in found if not batch.status.ended]
            if found and not living:
                return
            for batch in living:
                await ended_batch(self._watch().snapshots(batch.id), self.log)
            if not found:
                await asyncio.sleep(self.poll_interval)

    def _watch(self) -> SharedWatch:
        return SharedWatch.of(self.conn_id, BatchLLMHook(self.conn_id).aget_conn)

    async def _found(self, client: AsyncBatchClient) -> list[Batch]:
        """The batches, once the service answers."""
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
