"""Wakes who waits for a change of a batch: one look at the store for all of them, however many they are.

Nothing is remembered between two looks but what each waiter itself has seen, so that no change can be missed, however
late it is committed and whichever process commits it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import anyio.to_thread

from airflow_batch_llm.store.changes import IDS_PER_QUERY, BatchChanges, Seen, status_in, statuses_seen
from airflow_batch_llm.store.database import StoreTroubleError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""How soon a change is noticed."""
MOST_LOAD: Final = 0.1
"""How much of the time may go into looking: with very many batches the looks become rarer."""


@dataclass(frozen=True, eq=False)
class Watch:
    """What one client waits for: any of these batches in another version than the one it has seen (None: never seen).

    With ``status_only`` a batch that only gets on with its rows is no change.
    """

    team: str
    seen: Mapping[str, str | None]
    status_only: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @functools.cached_property
    def statuses(self) -> str | None:
        """What the database needs to compare by itself, for a watch of so many batches that it is worth it."""
        if not self.status_only or len(self.seen) <= IDS_PER_QUERY:
            return None
        return statuses_seen(self.seen)

    def of(self, batch_ids: Iterable[str]) -> Watch:
        """The same for these batches alone."""
        return Watch(self.team, {batch_id: self.seen[batch_id] for batch_id in batch_ids}, self.status_only)

    def changed(self, found: Mapping[str, Seen]) -> dict[str, str]:
        """The batches that differ from what was seen, with their versions."""
        return {
            batch_id: found[batch_id].version
            for batch_id, seen in self.seen.items()
            if self._sees(found, batch_id) and self._differs(seen, found[batch_id].version)
        }

    def differs(self, found: Mapping[str, Seen]) -> bool:
        return bool(self.changed(found) or self.gone(found))

    def gone(self, found: Mapping[str, Seen]) -> list[str]:
        """The batches that there are not, or not for this team."""
        return [batch_id for batch_id in self.seen if not self._sees(found, batch_id)]

    def _sees(self, found: Mapping[str, Seen], batch_id: str) -> bool:
        return batch_id in found and found[batch_id].team == self.team

    def _differs(self, seen: str | None, version: str) -> bool:
        if seen is None or not self.status_only:
            return seen != version
        return status_in(seen) != status_in(version)


class Changes:
    """The waiters of one service process; lives on one event loop.

    Looks only while somebody waits. A store that is away only delays.
    """

    def __init__(self, batches: BatchChanges) -> None:
        self.batches = batches
        self.over = False
        self._waiting: set[Watch] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def look(self, watch: Watch) -> tuple[Watch, dict[str, Seen]]:
        """What was found, and the watch of those of its batches that can have changed."""
        if watch.statuses is not None:
            watch = watch.of(self.batches.differing(watch.team, watch.statuses))
        return watch, self.batches.versions(watch.seen)

    async def wait(self, watch: Watch, seconds: float | None = None) -> None:
        """Returns once something that is watched differs from what was seen, the time is up or the service ends."""
        if self.over:
            return
        self._waiting.add(watch)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(seconds):
                await watch.woken.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(watch)

    def close(self) -> None:
        """Lets everybody go who waits, and nobody wait any more: the service ends."""
        self.over = True
        for watch in self._waiting:
            watch.woken.set()

    async def _look(self) -> None:
        pause = LOOK_SECONDS
        while self._waiting:
            await asyncio.sleep(pause)
            started = time.monotonic()
            for watch in await self._to_wake():
                watch.woken.set()
            pause = max(LOOK_SECONDS, (time.monotonic() - started) / MOST_LOAD)

    async def _to_wake(self) -> list[Watch]:
        watches = list(self._waiting)
        try:
            return await anyio.to_thread.run_sync(self._differing, watches)
        except StoreTroubleError as error:
            log.warning("could not look for changes: %s", error)
        except Exception:
            log.exception("looking for changes broke off; it goes on")
        return []

    def _differing(self, watches: list[Watch]) -> list[Watch]:
        small = [watch for watch in watches if watch.statuses is None]
        found = self.batches.versions(set[str]().union(*(watch.seen for watch in small)))
        return [
            watch
            for watch in watches
            if (self.batches.differing(watch.team, watch.statuses, limit=1) if watch.statuses else watch.differs(found))
        ]
