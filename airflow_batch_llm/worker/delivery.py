"""Getting results to the service: parts while a chunk goes on, a commit or a release at its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from airflow_batch_llm.errors import BatchLLMError, ConflictError, LeaseLostError, NoAnswerError, RefusedError
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker.work import ChunkWork
from airflow_batch_llm.worker_wire import PartRecord

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 1.0


@dataclass
class Delivery:
    """Stores and commits what chunks bring. A service that does not answer is asked again; nothing is dropped."""

    link: ServiceLink

    async def begin(self, work: ChunkWork, *, must_end: Callable[[], bool]) -> None:
        """Says that the engine is about to get the chunk's first row, and returns once the service knows it.

        Should that row end this process, it has been said. Waits while the service is away, and while another worker
        has a row that must be alone at the same server; not for a chunk that ``must_end``.
        """
        while not (work.begun or must_end()):
            try:
                begun = await asyncio.to_thread(self.link.begin, work.claim)
                if begun.stop:
                    work.asked_to_stop()
                work.begun = not (begun.stop or begun.wait)
            except LeaseLostError:
                work.lease_lost()
            except BatchLLMError as error:
                log.warning("chunk %d waits to begin: %s", work.claim.chunk_id, error)
            if not work.begun:
                await self._pause(work)

    async def flush(self, work: ChunkWork) -> None:
        """Commits what finished so far. Where the service does not answer it stays for the next time."""
        work.make_part()
        if not work.unsent_parts or work.lost:
            return
        try:
            extended = await asyncio.to_thread(self._deliver, work, self.link.extend)
            if extended.stop:
                work.asked_to_stop()
        except LeaseLostError:
            work.lease_lost()
        except (NoAnswerError, RefusedError) as error:
            log.warning("kept %d parts of chunk %d: %s", len(work.unsent_parts), work.claim.chunk_id, error)

    async def commit(self, work: ChunkWork, *, give_up: Callable[[], bool]) -> None:
        work.make_part()
        await self._insist(work, self.link.commit, give_up)

    async def release(self, work: ChunkWork, *, give_up: Callable[[], bool], **how: Any) -> None:
        work.make_part()

        def release(claim: Any, parts: list[PartRecord]) -> None:
            self.link.release(claim, parts, **how)

        await self._insist(work, release, give_up)

    async def _pause(self, work: ChunkWork) -> None:
        """Sleeps, but not through a change of the chunk's fate."""
        work.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE_SECONDS):
                await work.changed.wait()

    async def _insist(self, work: ChunkWork, call: Callable[..., Any], give_up: Callable[[], bool]) -> None:
        """Repeats a call until it is answered, the lease is lost, or the worker may wait no longer."""
        while True:
            try:
                await asyncio.to_thread(self._deliver, work, call)
            except (NoAnswerError, ConflictError) as error:
                lasting = isinstance(error, ConflictError) and error.code != "part_not_stored"
                if lasting or give_up():
                    raise
                log.warning("chunk %d is delivered again: %s", work.claim.chunk_id, error)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return

    def _deliver(self, work: ChunkWork, call: Callable[..., Any]) -> Any:
        """Stores the parts that are not stored yet, then has them committed by ``call``."""
        parts = list(work.unsent_parts)
        for part in parts:
            if not part.stored:
                self.link.put_part(work.claim, part.record.number, part.content)
                part.stored = True
        try:
            answer = call(work.claim, [part.record for part in parts])
        except ConflictError:
            for part in parts:
                part.stored = False
            raise
        work.unsent_parts = [part for part in work.unsent_parts if part not in parts]
        return answer
