"""Whether an engine that has rows stands still: it lives, takes requests, and will never answer them.

vLLM's health tells nothing of that. Its counters of tokens do: while one row is long, they rise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_COUNTERS: Final = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? ([0-9.eE+]+)$", re.MULTILINE)


def tokens_counted(metrics: bytes) -> float | None:
    """The tokens that vLLM has read and written so far, by its ``/metrics``; None where it does not count them."""
    counted = [float(number) for number in _COUNTERS.findall(metrics)]
    return sum(counted) if counted else None


@dataclass
class Stall:
    """Judges look after look. ``seconds`` is how long an engine with rows may show no answer and no new token."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    _seen: tuple[int, float] | None = field(default=None, init=False)

    def started(self) -> None:
        """The engine is another one."""
        self._since = self._seen = None

    def stands_still(self, *, in_flight: int, answered: int, tokens: float) -> bool:
        """Whether the engine has had rows for too long of which nothing came. ``answered`` and ``tokens`` only rise."""
        now, seen = self.clock(), (answered, tokens)
        if in_flight == 0 or self._since is None or seen != self._seen:
            self._since, self._seen = now, seen
        return now - self._since > self.seconds
