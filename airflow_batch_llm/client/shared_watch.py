"""Waiting for any number of batches with one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Final
from weakref import WeakKeyDictionary

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.followers import Follower, Watched
from airflow_batch_llm.errors import NoAnswerError, NotFoundError
from airflow_batch_llm.wire import BATCH_ID, MOST_CHANGED, MOST_WATCHED, Batch, BatchChangeList

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
"""Least time between two requests for all, however many batches change or are joined."""
PROGRESS_SECONDS: Final = 30.0
"""How often batches are looked at that only got on with their rows; no request waits for longer than that."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 20.0
"""How far apart requests drift while there is trouble, in seconds; one request is all that a service sees of it."""
QUIET_SECONDS: Final = 30.0
"""For how long there may be trouble before those who wait are told: a service's restart takes less."""
PATIENCE_SECONDS: Final = 600.0
"""For how long a token may be refused, or a connection be unreadable, before those who wait are refused."""

TOLD_AT_ONCE: Final = 50
TOLD_PAUSE: Final = 0.01
"""Followers told before the event loop has its turn, in seconds. Each may write to its log, and in Airflow 3.3 logs go
through a pipe that blocks the loop when it is full, while the other end may be blocked by what the loop is to read."""

Connect = Callable[[], Awaitable[AsyncBatchClient]]
"""Gives a new client of the service, at the address and with the token that hold now."""

_WATCHES: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, SharedWatch]]] = WeakKeyDictionary()


class SharedWatch:
    """All batches of one service that are waited for on one event loop.

    One request at a time asks for the next change of status of any of them, and about every 30 seconds for their
    progress, some hundred at a time. Above 10,000 batches it is one request for each 10,000. A request compares what
    was seen with what is, so that no change is missed, in whatever order changes are committed and however long the
    service is away.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._groups: list[_Group] = []

    @classmethod
    def of(cls, name: Hashable, connect: Connect) -> SharedWatch:
        """The watch of that name on the running event loop; ``connect`` is used where there is none yet."""
        return _WATCHES.setdefault(asyncio.get_running_loop(), {}).setdefault(name, cls(connect))

    async def snapshots(self, batch_id: str) -> AsyncGenerator[Batch]:
        """The batch as it stands, and again as often as it changes; the last one has ended. No end is ever missed.

        A service that is away is waited for without end. Raises :class:`NotFoundError` for a batch that there is not
        (any more), and what went wrong where the token is refused, or ``connect`` fails, for ten minutes.
        """
        if not re.fullmatch(BATCH_ID, batch_id):
            raise NotFoundError(f"There is no batch {batch_id!r}.")
        group = self._group_for(batch_id)
        follower = group.join(batch_id)
        try:
            async with aclosing(follower.snapshots()) as snapshots:
                async for batch in snapshots:
                    yield batch
        finally:
            group.leave(batch_id, follower)
            self._groups = [group for group in self._groups if group.watched]

    def _group_for(self, batch_id: str) -> _Group:
        open_groups = [group for group in self._groups if not group.over]
        for group in open_groups:
            if batch_id in group.watched:
                return group
        for group in open_groups:
            if len(group.watched) < MOST_WATCHED:
                return group
        self._groups.append(_Group(self._connect))
        return self._groups[-1]


class _Group:
    """At most 10,000 batches, and the task that asks for them as long as there are any."""

    def __init__(self, connect: Connect) -> None:
        self.watched: dict[str, Watched] = {}
        self.over = False
        """Set once it asks no more: its followers have been refused."""
        self._connect = connect
        self._moved = asyncio.Event()
        """Set when somebody has joined, or the last one has left."""
        self._empty = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self._progress_at = asyncio.get_running_loop().time() + PROGRESS_SECONDS
        self._trouble_since: float | None = None
        self._warned = False

    def join(self, batch_id: str) -> Follower:
        follower = Follower(batch_id)
        watched = self.watched.setdefault(batch_id, Watched())
        watched.followers.add(follower)
        watched.version = None
        self._empty.clear()
        self._moved.set()
        if self._asking is None:
            # Without the context of the follower that happens to be the first one: it decides whose log is written.
            self._asking = asyncio.create_task(self._ask(), context=contextvars.Context())
        return follower

    def leave(self, batch_id: str, follower: Follower) -> None:
        watched = self.watched[batch_id]
        watched.followers.discard(follower)
        if not watched.followers:
            del self.watched[batch_id]
        if not self.watched:
            self._empty.set()
            self._moved.set()

    async def _ask(self) -> None:
        """Asks as long as anybody waits, each time it went wrong with a new client: its address may be another now."""
        pause = FIRST_PAUSE
        try:
            while self.watched:
                try:
                    async with await self._connect() as client:
                        while self.watched:
                            await self._round(client)
                            pause = FIRST_PAUSE
                except Exception as error:  # noqa: BLE001 (whoever waits is told of it, and it may be better soon)
                    await self._has_trouble(error)
                    await self._paused(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:  # also where this task is cancelled: nobody must wait for it then
            self._refuse(NoAnswerError("The triggerer ended its watch of the batches."))

    async def _paused(self, seconds: float) -> None:
        """Waits, but not for a service that nobody waits for any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()

    async def _round(self, client: AsyncBatchClient) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._progress_at:
            self._progress_at = loop.time() + PROGRESS_SECONDS
            await self._look_for_progress(client)
        await self._paused(self._next_at - loop.time())
        if not self.watched:
            return
        self._next_at = loop.time() + ROUND_SECONDS
        self._moved.clear()
        wait = max(0.0, self._progress_at - loop.time())
        answer = await self._unless_moved(client.watch(self._seen(self.watched), wait=wait, changes="status"))
        if answer is not None:
            await self._tell(answer)
            if answer.has_more:
                self._next_at = loop.time()

    async def _look_for_progress(self, client: AsyncBatchClient) -> None:
        """Looks at each batch once, as many at a time as one answer can tell of."""
        remaining = iter(list(self.watched))
        while batch_ids := list(islice(remaining, MOST_CHANGED)):
            if seen := self._seen(batch_ids):
                await self._tell(await client.watch(seen, wait=0, changes="all"))

    def _seen(self, batch_ids: Iterable[str]) -> dict[str, str | None]:
        return {batch_id: self.watched[batch_id].version for batch_id in batch_ids if batch_id in self.watched}

    async def _unless_moved(self, call: Awaitable[BatchChangeList]) -> BatchChangeList | None:
        """The answer, or None where somebody has joined and it is not there within the round: it is asked anew."""
        asked = asyncio.ensure_future(call)
        moved = asyncio.create_task(self._moved.wait())
        try:
            await asyncio.wait({asked, moved}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done() and self.watched:
                left = self._next_at - asyncio.get_running_loop().time()
                await asyncio.wait({asked}, timeout=max(0.0, left))
            return asked.result() if asked.done() else None
        finally:
            for task in (asked, moved):
                task.cancel()
            await asyncio.gather(asked, moved, return_exceptions=True)

    async def _tell(self, answer: BatchChangeList) -> None:
        self._trouble_since = None
        if self._warned:
            self._warned = False
            async for follower in self._in_turn(*self.watched):
                follower.relieve()
        for batch_id in answer.gone:
            for follower in self._followers(batch_id):
                follower.refuse(NotFoundError(f"There is no batch {batch_id!r}, or it is another team's."))
        news = {changed.batch.id: changed for changed in answer.changed}
        for batch_id in news.keys() & self.watched.keys():
            self.watched[batch_id].version = news[batch_id].version
        ended_first = sorted(news, key=lambda batch_id: not news[batch_id].batch.status.ended)
        async for follower in self._in_turn(*ended_first):
            follower.tell(news[follower.batch_id].batch)

    async def _has_trouble(self, error: Exception) -> None:
        """Tells of an error that lasts; one that says more than that the service is away is not borne for ever."""
        now = asyncio.get_running_loop().time()
        if self._trouble_since is None:
            self._trouble_since = now
            log.warning("batches cannot be watched, which is tried again: %s", error, exc_info=_traceback_of(error))
        lasted, away = now - self._trouble_since, isinstance(error, NoAnswerError)
        if lasted >= PATIENCE_SECONDS and not away:
            self._refuse(error)
        elif lasted >= QUIET_SECONDS:
            self._warned = True
            how_long = "for as long as it takes" if away else f"for {PATIENCE_SECONDS / 60:.0f} minutes in all"
            async for follower in self._in_turn(*self.watched):
                follower.warn(f"{error or type(error).__name__} It is tried again, {how_long}.")

    async def _in_turn(self, *batch_ids: str) -> AsyncGenerator[Follower]:
        """The followers, with a pause after some of them."""
        for number, follower in enumerate(list(self._followers(*batch_ids)), 1):
            yield follower
            if number % TOLD_AT_ONCE == 0:
                await asyncio.sleep(TOLD_PAUSE)

    def _refuse(self, error: Exception) -> None:
        self.over = True
        for follower in self._followers(*self.watched):
            follower.refuse(error)

    def _followers(self, *batch_ids: str) -> Iterator[Follower]:
        for batch_id in batch_ids:
            if watched := self.watched.get(batch_id):
                yield from watched.followers


def _traceback_of(error: Exception) -> Exception | None:
    """Only an error that nobody foresaw is worth one."""
    return None if isinstance(error, NoAnswerError) else error
