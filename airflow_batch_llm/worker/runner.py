"""The worker's loop: keeps the engine full across chunk and batch borders, and gives back what it cannot finish.

A chunk is claimed as soon as the last row of the one before is with the engine, so the engine never drains between
them. Memory is bounded by two or three chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm import __version__
from airflow_batch_llm.errors import BatchLLMError, EngineStartError, LeaseLostError, NoAnswerError, NotFoundError
from airflow_batch_llm.settings import WorkerSettings
from airflow_batch_llm.worker.delivery import Delivery
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.engine_watch import EngineWatch
from airflow_batch_llm.worker.gpu_time import GpuTime
from airflow_batch_llm.worker.heartbeat import Heartbeat
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError, engine_error
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker.work import ChunkWork, may_claim, may_send
from airflow_batch_llm.worker_wire import Claim, Registered, Registration, RowLine, ServedModel

log = logging.getLogger(__name__)

WINDOW_PER_SEQUENCE: Final = 2
"""Rows in flight for each row that the engine works on at once: measured to keep it full."""
ROW_TRIES: Final = 3
"""How often a living engine may fail to judge a row before the row becomes an error."""
ROW_PAUSE_SECONDS: Final = 0.5
ROWS_TRIES: Final = 3
"""How often the service is asked for the rows of a chunk before that is left."""
DESCRIBE_TRIES: Final = 5
"""How often the engine is asked what it serves before it is given up."""


@dataclass
class Runner:
    """Claims chunks, has the engine do their rows, delivers the results."""

    settings: WorkerSettings
    link: ServiceLink
    engine: Engine
    watch: EngineWatch
    identity: str | None
    _works: dict[tuple[int, int], ChunkWork] = field(default_factory=dict)
    """By chunk and attempt: a worker may get a chunk again whose lease it lost and of which it does not know yet."""
    _draining: asyncio.Event = field(default_factory=asyncio.Event)
    _hungry: asyncio.Event = field(default_factory=asyncio.Event)
    _gpu_time: GpuTime = field(default_factory=GpuTime)
    _answered: int = 0
    _give_up_at: float = math.inf
    _worker_id: str = ""
    """Empty until registered."""

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT, then drains. Raises where engine or registration fail for good."""
        self._window = asyncio.Semaphore(WINDOW_PER_SEQUENCE * self.settings.engine.max_num_seqs)
        self._delivery = Delivery(self.link)
        self.watch.load = lambda: (self._gpu_time.rows, self._answered)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        async with self.engine:
            try:
                if await self._started():
                    await self._work_until_drained()
            finally:
                self.watch.stop()

    def drain(self) -> None:
        """Claims nothing more, lets rows in flight finish for a while, gives the rest back."""
        if self._draining.is_set():
            return
        log.info("draining: %d chunks are here", len(self._works))
        self._give_up_at = time.monotonic() + self.settings.drain_seconds
        self._draining.set()
        self.watch.ending = True
        self._hungry.set()
        for work in self._works.values():
            work.changed.set()

    async def _started(self) -> bool:
        """Waits until the engine takes rows and the service knows this worker; false if asked to end before."""
        starting = asyncio.create_task(self._start())
        draining = asyncio.create_task(self._draining.wait())
        await asyncio.wait({starting, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return False
        starting.result()
        return bool(self._worker_id)

    async def _start(self) -> None:
        try:
            await asyncio.to_thread(self.link.check)
        except NoAnswerError as error:
            log.warning("starting the engine although the service is not there yet: %s", error)
        await self.watch.start(self.engine)
        await self._register()

    async def _work_until_drained(self) -> None:
        self._heartbeat = Heartbeat(self.link, self._lease_seconds)
        try:
            async with asyncio.TaskGroup() as tasks:
                flushing = tasks.create_task(self._flush_forever())
                watching = tasks.create_task(self.watch.run(self._engine_died))
                await self._claim_until_drained(tasks)
                await self._drained()
                flushing.cancel()
                watching.cancel()
            await asyncio.to_thread(self._leave)
        finally:
            self._heartbeat.stop()

    async def _register(self) -> None:
        served = await self._served()
        registration = Registration(
            name=self.settings.name, version=__version__, models=served, server=self.engine.shared_server
        )
        while not self._draining.is_set():
            try:
                registered = await self._registered(registration)
            except NoAnswerError as error:
                log.warning("waiting for the service: %s", error)
                await self._pause(self.settings.claim_seconds)
            else:
                self._worker_id, self._lease_seconds = registered.worker_id, registered.lease_seconds
                endpoints = ", ".join(model.endpoint for model in served)
                log.info("registered as %s for model %s at %s", self._worker_id, self.engine.model, endpoints)
                return

    async def _registered(self, registration: Registration) -> Registered:
        """Registers. A worker that is asked to end meanwhile takes its leave at once, lest it count as serving."""
        asking = asyncio.ensure_future(asyncio.to_thread(self.link.register, registration))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(BatchLLMError):
                self._worker_id = (await asking).worker_id
                await asyncio.to_thread(self._leave)
                self._worker_id = ""
            raise

    async def _served(self) -> list[ServedModel]:
        """What the engine says that it serves. Raises where it does not answer, as one that died does not."""
        for _ in range(DESCRIBE_TRIES):
            try:
                described = await self.engine.described()
            except NotTheRowsFaultError as error:
                log.warning("asking again: %s", error)
                await self._pause(self.settings.claim_seconds)
            else:
                return [
                    ServedModel(
                        model=self.engine.model, endpoint=endpoint, engine_identity=self.identity, body_fields=fields
                    )
                    for endpoint, fields in described.items()
                ]
        raise EngineStartError(f"The engine did not say within {DESCRIBE_TRIES} tries what it serves. See its log.")

    def _leave(self) -> None:
        try:
            self.link.leave(self._worker_id)
        except BatchLLMError as error:
            log.warning("left without a word: %s", error)

    async def _claim_until_drained(self, tasks: asyncio.TaskGroup) -> None:
        while not self._draining.is_set():
            self._hungry.clear()
            if not self.watch.up.is_set():
                await self._pause(self.settings.claim_seconds)
            elif not may_claim(self._works.values()):
                await self._hungry.wait()
            elif work := await self._claim():
                self._works[work.claim.chunk_id, work.claim.attempt] = work
                tasks.create_task(self._do(work))
            else:
                await self._pause(self.settings.claim_seconds)

    async def _claim(self) -> ChunkWork | None:
        try:
            claim = await asyncio.to_thread(self.link.claim, self._worker_id)
            if claim is None:
                return None
            content = await self._rows(claim)
            log.info("claimed chunk %d of %s, attempt %d", claim.chunk_id, claim.batch_id, claim.attempt)
            return ChunkWork.of(claim, content)
        except NotFoundError:
            log.warning("the service does not know this worker any more: registering again")
            await self._register()
        except (BatchLLMError, ValueError) as error:
            # A chunk whose rows cannot be had is left to its lease's end, which blames nobody since it never began.
            # Given back at once it would be the first in line again, and nothing behind it would be done.
            log.warning("no claim: %s", error)
        return None

    async def _rows(self, claim: Claim) -> bytes:
        """The chunk's lines; a service that does not get at them is asked again."""
        for _ in range(ROWS_TRIES - 1):
            try:
                return await asyncio.to_thread(self.link.rows, claim)
            except NoAnswerError as error:
                log.warning("asking again for the rows of chunk %d: %s", claim.chunk_id, error)
                await self._pause(self.settings.claim_seconds)
        return await asyncio.to_thread(self.link.rows, claim)

    async def _do(self, work: ChunkWork) -> None:
        """Sends a chunk's rows as slots get free, until all are answered or something ends it."""
        self._heartbeat.keep(work)
        try:
            while not work.all_answered and not self._must_end(work):
                if may_send(work, self._works.values()):
                    await self._send_next(work)
                else:
                    self._hungry.set()
                    work.changed.clear()
                    await work.changed.wait()
            self._hungry.set()
            if self._draining.is_set() and not work.all_answered:
                await self._let_finish(work)
            await self._end(work)
        finally:
            self._heartbeat.drop(work)
            del self._works[work.claim.chunk_id, work.claim.attempt]
            self._hungry.set()
            for other in self._works.values():
                other.changed.set()

    def _must_end(self, work: ChunkWork) -> bool:
        return work.lost or work.stopping or work.engine_died or self._draining.is_set()

    async def _send_next(self, work: ChunkWork) -> None:
        await self._window.acquire()
        await self._delivery.begin(work, must_end=lambda: self._must_end(work) or not self.watch.up.is_set())
        if work.begun and work.claim.alone and await self.watch.gone():
            work.end_by_engine_death()
        if not self.watch.up.is_set():  # it died while the chunk was claimed, or a row saw it before the watch did
            work.end_by_engine_death()
        if self._must_end(work) or not work.todo:
            self._window.release()
            return
        line = work.todo.popleft()
        self._gpu_time.row_in()
        task = work.in_flight[line.row] = asyncio.create_task(self._judged(work, line))
        task.add_done_callback(lambda done: self._came_back(work, line, done))

    def _came_back(self, work: ChunkWork, line: RowLine, task: asyncio.Task[bool]) -> None:
        """Frees a row's slot. A callback: a task that is cancelled before its first step runs nothing of its own."""
        self._gpu_time.row_out()
        self._window.release()
        del work.in_flight[line.row]
        work.changed.set()
        if task.cancelled() or not task.result():
            work.give_back(line)

    async def _judged(self, work: ChunkWork, line: RowLine) -> bool:
        """Has the engine answer a row; false where it gave no judgement and the row may be sent again."""
        try:
            result = await self.engine.ask(line, work.claim, work.check)
        except NotTheRowsFaultError as error:
            return await self._given_up(work, line, error)
        self._answered += 1
        work.finish(result)
        return True

    async def _given_up(self, work: ChunkWork, line: RowLine, error: NotTheRowsFaultError) -> bool:
        """A living engine that fails on a row again and again makes it an error; a dying one is charged to no row."""
        if await self.watch.died():
            work.rows_lost += 1
            work.suspects.add(line.row)
            return False
        work.failures[line.row] += 1
        if work.failures[line.row] < ROW_TRIES:
            await asyncio.sleep(ROW_PAUSE_SECONDS)
            return False
        work.finish(engine_error(line.row, str(error), whole=work.claim.whole))
        return True

    def _engine_died(self) -> None:
        for work in self._works.values():
            work.end_by_engine_death()

    async def _let_finish(self, work: ChunkWork) -> None:
        """Waits for the rows in flight, up to the end of the drain time."""
        tasks = list(work.in_flight.values())
        if tasks and not (work.lost or work.stopping):
            await asyncio.wait(tasks, timeout=max(0.0, self._give_up_at - time.monotonic()))

    async def _end(self, work: ChunkWork) -> None:
        work.abort_in_flight()
        if work.in_flight:
            await asyncio.wait(list(work.in_flight.values()))
        if work.lost:
            log.warning("dropped chunk %d: it is another worker's now", work.claim.chunk_id)
            return
        self._gpu_time.share(self._works.values())
        try:
            async with work.delivering:
                if work.all_answered:
                    await self._delivery.commit(work, give_up=self._may_wait_no_longer)
                    log.info("committed chunk %d of %s", work.claim.chunk_id, work.claim.batch_id)
                else:
                    how = self._how_it_ended(work)
                    suspects = sorted(work.suspects) if how == "engine_died" else []
                    await self._delivery.release(
                        work,
                        give_up=self._may_wait_no_longer,
                        outcome=how,
                        rows_lost=work.rows_lost,
                        in_flight=suspects,
                    )
                    log.info("released chunk %d of %s: %s", work.claim.chunk_id, work.claim.batch_id, how)
        except LeaseLostError as error:
            log.warning("dropped chunk %d: %s", work.claim.chunk_id, error)
        except BatchLLMError as error:
            log.warning("left chunk %d to its lease's end: %s", work.claim.chunk_id, error)

    def _how_it_ended(self, work: ChunkWork) -> str:
        """An engine that ends while the worker drains got the same signal as that: no row did it."""
        if work.engine_died and not self._draining.is_set():
            return "engine_died"
        return "stopped" if work.stopping else "drained"

    def _may_wait_no_longer(self) -> bool:
        return time.monotonic() > self._give_up_at

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.flush_seconds)
            self._gpu_time.share(self._works.values())
            for work in list(self._works.values()):
                if not work.delivering.locked():
                    async with work.delivering:
                        await self._delivery.flush(work)

    async def _drained(self) -> None:
        while self._works:
            self._hungry.clear()
            await self._hungry.wait()

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not through the order to drain."""
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            pass
