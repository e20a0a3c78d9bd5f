"""Whether the engine lives; starts the one that the worker supervises again when it died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError
from airflow_batch_llm.worker.stall import Stall
from airflow_batch_llm.worker.vllm_process import VllmProcess

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
DYING_SECONDS: Final = 3.0
"""vLLM answers 500 for about a second and a half before it exits; only after this long is a 500 the row's."""
ENDPOINT_LOOK_SECONDS: Final = 2.0
LOOKS_PER_STALL: Final = 20


@dataclass
class EngineWatch:
    """Watches one engine: a supervised ``process``, or (None) a server that somebody else keeps alive."""

    process: VllmProcess | None
    stall: Stall | None = None
    """Judges whether the supervised engine stands still; None to leave that to the rows' own timeout."""
    load: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """How many rows are with the engine, and how many it has answered so far."""
    ending: bool = False
    """Whether the worker drains: an engine that dies then is not started again."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the engine takes rows."""
    _probe: asyncio.Task[bool] | None = None
    _next_look: float = 0.0

    async def start(self, engine: Engine) -> None:
        """Returns once the engine takes rows; a foreign server is waited for."""
        self._engine = engine
        if self.process:
            self.process.start()
        await self._wait_ready()

    def stop(self) -> None:
        if self.process:
            self.process.stop()

    async def run(self, died: Callable[[], None]) -> None:
        """Looks for ever; tells each death through ``died`` and brings a supervised engine back."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.up.is_set() and not self._exited() and not await self._stands_still():
                continue
            self.up.clear()
            died()
            if self.ending:
                return
            if self.process:
                log.warning("the engine died with code %s: starting it again", self.process.exit_code())
                await asyncio.to_thread(self.process.stop)
                self.process.start()
            await self._wait_ready()
            log.info("the engine takes rows again")

    async def _stands_still(self) -> bool:
        """Whether the supervised engine will never answer the rows that it has."""
        if self.stall is None or self.process is None or time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + self.stall.seconds / LOOKS_PER_STALL
        in_flight, answered = self.load()
        try:
            tokens = await self._engine.tokens() if in_flight else 0.0
        except NotTheRowsFaultError:
            tokens = 0.0  # one that does not even answer this has not moved
        if tokens is None:
            return False
        if not self.stall.stands_still(in_flight=in_flight, answered=answered, tokens=tokens):
            return False
        log.warning("the engine has had %d rows for %.0f s, and moved none: it ends", in_flight, self.stall.seconds)
        return True

    async def died(self) -> bool:
        """Whether the engine is dying or dead, asked by a row that got no judgement. Many rows share one look."""
        if not self.up.is_set():
            return True
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._look())
        return await asyncio.shield(self._probe)

    async def gone(self) -> bool:
        """Whether a server that others ask too is gone: asked right before a row is alone with it.

        The row of another worker may just have ended it, and this one must not be charged for finding it dead.
        """
        return self.process is None and await self.died()

    async def _look(self) -> bool:
        if await self._lives():
            return False
        self.up.clear()  # at once, so that no row is sent before the engine is back
        return True

    async def _lives(self) -> bool:
        if self.process:
            for _ in range(int(DYING_SECONDS / LOOK_SECONDS)):
                if self._exited() or not self.up.is_set():
                    return False
                await asyncio.sleep(LOOK_SECONDS)
        return await self._engine.healthy()

    def _exited(self) -> bool:
        return self.process is not None and self.process.exit_code() is not None

    async def _wait_ready(self) -> None:
        if self.process:
            await self.process.wait_ready(self._engine)
        else:
            while not await self._engine.healthy():
                log.warning("waiting for %s to serve %s", self._engine.base_url, self._engine.model)
                await asyncio.sleep(ENDPOINT_LOOK_SECONDS)
        if self.stall:
            self.stall.started()
        self.up.set()
