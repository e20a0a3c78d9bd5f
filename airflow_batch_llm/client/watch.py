"""Waiting for one batch by looking at it again and again, which every server allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.wire import Batch

log = logging.getLogger(__name__)

LONGEST_PAUSE: Final = timedelta(minutes=1)
"""How far apart looks drift while the service does not answer."""


@dataclass
class Watch:
    """Looks at one batch until it ends. A service that does not answer is asked again, ever more slowly, for ever."""

    client: AsyncBatchClient
    batch_id: str
    poll_interval: timedelta

    async def snapshots(self) -> AsyncGenerator[Batch]:
        """The batch as it stands, look after look; the last one has ended."""
        pause = self.poll_interval
        while True:
            try:
                batch = await self.client.get(self.batch_id)
            except NoAnswerError as error:
                pause = min(pause * 2, LONGEST_PAUSE)
                log.warning("%s Looking again in %.0f s.", error, pause.total_seconds())
            else:
                pause = self.poll_interval
                yield batch
                if batch.status.ended:
                    return
            await asyncio.sleep(pause.total_seconds())
