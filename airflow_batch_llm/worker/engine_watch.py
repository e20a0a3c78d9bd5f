"""Whether the engine lives; starts the one that the worker supervises again when it died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.vllm_process import VllmProcess

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
DYING_SECONDS: Final = 3.0
"""vLLM answers 500 for about a second and a half before it exits; only after this long is a 500 the row's."""
ENDPOINT_LOOK_SECONDS: Final = 2.0


@dataclass
class EngineWatch:
    """Watches one engine: a supervised ``process``, or (None) a server that somebody else keeps alive."""

    process: VllmProcess | None
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the engine takes rows."""
    _probe: asyncio.Task[bool] | None = None

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
            if self.up.is_set() and not self._exited():
                continue
            self.up.clear()
            died()
            if self.process:
                log.warning("the engine died with code %s: starting it again", self.process.exit_code())
                await asyncio.to_thread(self.process.stop)
                self.process.start()
            await self._wait_ready()
            log.info("the engine takes rows again")

    async def died(self) -> bool:
        """Whether the engine is dying or dead, asked by a row that got no judgement. Many rows share one look."""
        if not self.up.is_set():
            return True
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._look())
        return await asyncio.shield(self._probe)

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
        self.up.set()
