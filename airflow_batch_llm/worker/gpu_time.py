"""Whose the GPU's time was: shared out by tokens among the chunks that used the engine at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


class Sharer(Protocol):
    tokens: int
    gpu_seconds: float


@dataclass
class GpuTime:
    """Counts the seconds in which at least one row was with the engine."""

    clock: Callable[[], float] = time.monotonic
    _rows: int = 0
    _since: float = 0.0
    _unshared: float = 0.0

    @property
    def rows(self) -> int:
        """How many rows are with the engine."""
        return self._rows

    def row_in(self) -> None:
        if self._rows == 0:
            self._since = self.clock()
        self._rows += 1

    def row_out(self) -> None:
        self._rows -= 1
        if self._rows == 0:
            self._unshared += self.clock() - self._since

    def share(self, sharers: Iterable[Sharer]) -> None:
        """Gives the seconds since the last share to whom tokens came back for; keeps them while none did."""
        sharers = list(sharers)
        tokens = sum(sharer.tokens for sharer in sharers)
        if self._rows:
            now = self.clock()
            self._unshared += now - self._since
            self._since = now
        if tokens == 0:
            return
        for sharer in sharers:
            sharer.gpu_seconds += self._unshared * sharer.tokens / tokens
            sharer.tokens = 0
        self._unshared = 0.0
