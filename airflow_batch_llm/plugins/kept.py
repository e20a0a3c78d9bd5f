"""What was looked up a moment ago, so that pages which ask all the time do not have it looked up each time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

KEPT_SECONDS: Final = 10.0
"""How long the pages go on with what a connection said."""
MOST_KEPT: Final = 100

_Found = TypeVar("_Found")


class Kept(Generic[_Found]):
    """Finds by a name with ``look_up``, and knows for some seconds what was found. What it raises is not kept.

    For threads: each may look up while others do, so that a slow one is in nobody's way.
    """

    def __init__(
        self,
        look_up: Callable[[str], _Found],
        *,
        seconds: float = KEPT_SECONDS,
        most: int = MOST_KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, _Found]] = {}
        """With the time of the look-up; the oldest first."""

    def of(self, name: str) -> _Found:
        """What ``look_up`` finds under the name, or found less than ``seconds`` ago. Raises what that raises."""
        now = self._clock()
        with self._lock:
            kept = self._found.get(name)
        if kept is not None and now - kept[0] < self._seconds:
            return kept[1]
        new = self._look_up(name)
        with self._lock:
            self._found.pop(name, None)
            self._found[name] = (now, new)
            while len(self._found) > self._most:
                del self._found[next(iter(self._found))]
        return new

    def forget(self) -> None:
        with self._lock:
            self._found.clear()
