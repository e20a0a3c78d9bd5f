"""Waiting for any number of batches with one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self
from weakref import WeakKeyDictionary

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.errors import BatchLLMError, NoAnswerError, NotFoundError, UnauthorizedError
from airflow_batch_llm.wire import BATCH_ID, MOST_WATCHED, Batch, BatchChangeList

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
"""Least time between two requests, however many batches change or are joined."""
PROGRESS_SECONDS: Final = 30.0
"""How often batches are looked at that only got on with their rows; no request waits for longer than that."""
FIRST_PAUSE: Final = 2.0
LONGEST_PAUSE: Final = 60.0
"""How far apart requests drift while the service does not answer, in seconds."""
PATIENCE_SECONDS: Final = 30.0
"""For how long a service may be away before those who wait are told: a restart takes less."""
TOLD_SECONDS: Final = 600.0
"""How often they are told again."""

_WATCHES: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], SharedWatch]]] = (
    WeakKeyDictionary()
)


class SharedWatch:
    """All batches of one service that are waited for on one event loop.

    One request at a time asks for the next change of status of any of them, and about every 30 seconds for their
    progress. Above 10,000 batches it is one request for each 10,000. The request compares what was seen with what is,
    so that no change is missed, in whatever order changes are committed and however often the service is away.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._groups: list[_Group] = []

    @classmethod
    def of(cls, url: str, token: str | None) -> Self:
        """The watch of the running event loop for a service."""
        watches = _WATCHES.setdefault(asyncio.get_running_loop(), {})
        watch: Self = watches.setdefault((url, token), cls(url, token))  # type: ignore[assignment]
        return watch

    async def snapshots(self, batch_id: str) -> AsyncGenerator[Batch]:
        """The batch as it stands, and again as often as it changes; the last one has ended. None is for ever missed.

        A service that is away is waited for without end. Raises :class:`NotFoundError` for a batch that there is not
        (any more), and :class:`UnauthorizedError` where the token is not taken.
        """
        if not re.fullmatch(BATCH_ID, batch_id):
            raise NotFoundError(f"There is no batch {batch_id!r}.")
        group = self._group_for(batch_id)
        follower = group.join(batch_id)
        trouble = _Trouble()
        try:
            while True:
                news = await follower.news()
                if isinstance(news, NoAnswerError):
                    trouble.begins(news)
                    continue
                trouble.ends()
                yield news
                if news.status.ended:
                    return
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
        self._groups.append(_Group(self._url, self._token))
        return self._groups[-1]


class _Trouble:
    """What one follower logs of a service that is away: in the follower's own log, and not too often."""

    def __init__(self) -> None:
        self._told_at: float | None = None

    def begins(self, error: NoAnswerError) -> None:
        now = asyncio.get_running_loop().time()
        if self._told_at is None or now >= self._told_at + TOLD_SECONDS:
            log.warning("%s It is asked again, for as long as it takes.", error)
            self._told_at = now

    def ends(self) -> None:
        if self._told_at is not None:
            log.info("The batch service answers again.")
            self._told_at = None


@dataclass(eq=False)
class _Follower:
    """One that waits for a batch. Of several snapshots that it did not come to look at, it gets the last one."""

    _batch: Batch | None = None
    _trouble: NoAnswerError | None = None
    _refusal: Exception | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, batch: Batch) -> None:
        self._batch, self._trouble = batch, None
        self._woken.set()

    def warn(self, trouble: NoAnswerError) -> None:
        self._trouble = trouble
        self._woken.set()

    def refuse(self, refusal: Exception) -> None:
        self._refusal = refusal
        self._woken.set()

    async def news(self) -> Batch | NoAnswerError:
        await self._woken.wait()
        self._woken.clear()
        batch, self._batch = self._batch, None
        if batch is not None and (batch.status.ended or self._refusal is None):
            return batch
        if self._refusal is not None:
            raise self._refusal
        assert self._trouble is not None  # noqa: S101 (nothing else wakes it)
        return self._trouble


@dataclass
class _Watched:
    version: str | None = None
    """The version that its followers have seen; None where one of them has seen none."""
    followers: set[_Follower] = field(default_factory=set)


class _Group:
    """At most 10,000 batches, and the task that asks for them as long as there are any."""

    def __init__(self, url: str, token: str | None) -> None:
        self.watched: dict[str, _Watched] = {}
        self.over = False
        """Set once it asks no more: its followers have been refused."""
        self._url = url
        self._token = token
        self._moved = asyncio.Event()
        self._empty = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._progress_at = 0.0
        self._next_at = 0.0
        self._away_since: float | None = None
        self._warned = False

    def join(self, batch_id: str) -> _Follower:
        follower = _Follower()
        watched = self.watched.setdefault(batch_id, _Watched())
        watched.followers.add(follower)
        watched.version = None
        self._empty.clear()
        self._moved.set()
        if self._asking is None:
            # Without the context of the follower that happens to be the first one: it decides whose log is written.
            self._asking = asyncio.create_task(self._ask_on(), context=contextvars.Context())
        return follower

    def leave(self, batch_id: str, follower: _Follower) -> None:
        watched = self.watched[batch_id]
        watched.followers.discard(follower)
        if not watched.followers:
            del self.watched[batch_id]
        if not self.watched:
            self._empty.set()
            self._moved.set()

    async def _ask_on(self) -> None:
        try:
            # Making a client reads the certificates from disk, which would hold up everybody else on the loop.
            async with await asyncio.to_thread(AsyncBatchClient, self._url, self._token) as client:
                await self._rounds(client)
        except (BatchLLMError, OSError) as error:
            self._refuse(error)

    async def _rounds(self, client: AsyncBatchClient) -> None:
        """Asks round after round. Raises :class:`UnauthorizedError`; everything else may be better the next time."""
        pause = FIRST_PAUSE
        while self.watched:
            try:
                await self._round(client)
            except UnauthorizedError:
                raise
            except Exception as error:
                if not isinstance(error, BatchLLMError):
                    log.exception("a look at the batches of %s broke off; it is tried again", self._url)
                self._is_away(error)
                await self._paused(pause * random.uniform(0.5, 1.5))  # noqa: S311 (no secret)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE

    async def _paused(self, seconds: float) -> None:
        """Waits, but not for a service that nobody waits for any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()

    async def _round(self, client: AsyncBatchClient) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._next_at - loop.time())
        self._next_at = loop.time() + ROUND_SECONDS
        wait = max(0.0, self._progress_at - loop.time())
        seen = {batch_id: watched.version for batch_id, watched in self.watched.items()}
        self._moved.clear()
        answer = await self._unless_moved(client.watch(seen, wait=wait, changes="status" if wait else "all"))
        if answer is None:
            return
        self._tell(answer)
        if answer.has_more and wait:
            self._next_at = 0.0
        if not wait:
            self._progress_at = loop.time() + (ROUND_SECONDS if answer.has_more else PROGRESS_SECONDS)

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
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(asked, moved, return_exceptions=True)

    def _tell(self, answer: BatchChangeList) -> None:
        self._away_since = None
        if self._warned:
            self._warned = False
            for watched in self.watched.values():
                watched.version = None  # so that everybody hears of it again
        for changed in answer.changed:
            if changed.batch.id in self.watched:
                self.watched[changed.batch.id].version = changed.version
                for follower in self._followers(changed.batch.id):
                    follower.tell(changed.batch)
        for batch_id in answer.gone:
            for follower in self._followers(batch_id):
                follower.refuse(NotFoundError(f"There is no batch {batch_id!r}, or it is another team's."))

    def _is_away(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= PATIENCE_SECONDS:
            trouble = error if isinstance(error, NoAnswerError) else NoAnswerError(f"{self._url} said: {error}")
            self._warned = True
            for follower in self._followers(*self.watched):
                follower.warn(trouble)

    def _refuse(self, error: Exception) -> None:
        self.over = True
        for follower in self._followers(*self.watched):
            follower.refuse(error)

    def _followers(self, *batch_ids: str) -> Iterator[_Follower]:
        for batch_id in batch_ids:
            if watched := self.watched.get(batch_id):
                yield from watched.followers
