"""Who waits for a batch in a shared watch, and what each of them is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.wire import Batch

log = logging.getLogger(__name__)

TOLD_SECONDS: Final = 600.0
"""How often a follower is told again of a service that is away."""


@dataclass(eq=False)
class Follower:
    """One that waits for a batch. Of several snapshots that it did not come to look at, it gets the last one."""

    batch_id: str
    _batch: Batch | None = None
    _trouble: str | None = None
    _refusal: Exception | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _told_at: float | None = None

    def tell(self, batch: Batch) -> None:
        self._batch, self._trouble = batch, None
        self._woken.set()

    def warn(self, trouble: str) -> None:
        """Nothing is known at the moment, and why."""
        self._trouble = trouble
        self._woken.set()

    def relieve(self) -> None:
        """What it was warned of is over."""
        self._trouble = None
        self._woken.set()

    def refuse(self, refusal: Exception) -> None:
        """There will be no more news."""
        self._refusal = refusal
        self._woken.set()

    async def snapshots(self) -> AsyncGenerator[Batch]:
        """The batch as often as it is told of, to its end. Raises what it is refused with.

        Trouble goes to the log from here, in the context of who follows: in Airflow that decides whose log it is.
        """
        while True:
            await self._woken.wait()
            self._woken.clear()
            self._log_trouble()
            batch, self._batch = self._batch, None
            if self._refusal is not None and not (batch is not None and batch.status.ended):
                raise self._refusal
            if batch is not None:
                yield batch
                if batch.status.ended:
                    return

    def _log_trouble(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._trouble is None:
            if self._told_at is not None:
                log.info("The batch service answers again.")
            self._told_at = None
        elif self._told_at is None or now >= self._told_at + TOLD_SECONDS:
            log.warning("%s", self._trouble)
            self._told_at = now


@dataclass
class Watched:
    """A batch that somebody follows."""

    version: str | None = None
    """The version that its followers have seen; None where one of them has seen none."""
    followers: set[Follower] = field(default_factory=set)
