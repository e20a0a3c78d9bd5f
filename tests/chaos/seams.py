"""Where a process can die, meet trouble or stand still: before and after each effect on the store and on bytes."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from airflow_batch_llm.storage.base import StorageTroubleError
from airflow_batch_llm.store.database import StoreTroubleError

Where = Literal["store", "storage", "tree"]
When = Literal["before", "in", "after"]

DEEPEST: Final = 2
"""How many processes may stand still at once, one within the other."""


class WorkerCrash(BaseException):
    """The process that is at work was killed."""


@dataclass(eq=False)
class Process:
    """A simulated process. What an earlier ``life`` of it began dies at its next effect."""

    name: str
    life: int = 0


@dataclass
class Temper:
    """How rough a schedule is: the chance of each fault at each seam."""

    crash: float = 0.0
    trouble: float = 0.0
    pause: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> Temper:
        """Some schedules are calm in one respect or another, so that what is rare can get far in them."""
        return cls(
            crash=rng.choice([0.0, 0.004, 0.01, 0.02]),
            trouble=rng.choice([0.0, 0.0, 0.005, 0.01]),
            pause=rng.choice([0.0, 0.01, 0.03]),
        )


@dataclass
class Seams:
    """Throws the faults of one schedule, at places that its seed chooses."""

    rng: random.Random
    temper: Temper
    log: Callable[[str], None]
    armed: bool = False
    meanwhile: Callable[[], None] = lambda: None
    """What the others do while a process stands still."""
    counts: Counter[str] = field(default_factory=Counter)
    transactions: int = 0
    """How many are open now: nobody stands still within one, for the others would wait for it."""
    _frames: list[tuple[Process, int]] = field(default_factory=list)
    _away: dict[Where, int] = field(default_factory=dict)
    """For how many more effects a backend is in trouble."""
    _paused: int = 0

    @contextmanager
    def running(self, process: Process) -> Iterator[None]:
        """What happens in the block is done by this process."""
        self._frames.append((process, process.life))
        try:
            yield
        finally:
            self._frames.pop()

    @contextmanager
    def around(self, where: Where, what: str) -> Iterator[None]:
        """An effect on bytes."""
        self.touch(where, "before", what)
        yield
        self.touch(where, "after", what)

    def touch(self, where: Where, when: When, what: str) -> None:
        """A seam: raises what the seed says. The harness itself, which is no process, is left alone."""
        if not self._frames:
            return
        self._die_if_dead()
        if not self.armed:
            return
        if self.transactions == 0 and self._paused < DEEPEST and self._chance(self.temper.pause):
            self._stand_still(f"{when} {what}")
        self._perhaps_trouble(where, when, what)
        if self._chance(self.temper.crash):
            self.kill(f"{when} {what}")

    def kill(self, where: str) -> None:
        """Ends the process that is at work. Raises :class:`WorkerCrash`."""
        process, _ = self._frames[-1]
        process.life += 1
        self.counts["crash"] += 1
        self.log(f"! {process.name} is killed {where}")
        raise WorkerCrash(f"{process.name} was killed {where}")

    def calm(self) -> None:
        """No more faults from here on."""
        self.armed = False
        self._away.clear()

    def _die_if_dead(self) -> None:
        process, life = self._frames[-1]
        if process.life != life:
            raise WorkerCrash(f"{process.name} is dead")

    def _stand_still(self, where: str) -> None:
        process, _ = self._frames[-1]
        self.counts["pause"] += 1
        self.log(f"~ {process.name} stands still {where}")
        self._paused += 1
        try:
            self.meanwhile()
        finally:
            self._paused -= 1
        self.log(f"~ {process.name} goes on")
        self._die_if_dead()

    def _perhaps_trouble(self, where: Where, when: When, what: str) -> None:
        left = self._away.get(where, 0)
        if left:
            self._away[where] = left - 1
        elif self._chance(self.temper.trouble):
            self._away[where] = self.rng.choice([0, 0, 2, 8])
        else:
            return
        self.counts[f"{where} trouble"] += 1
        self.log(f"! {where} trouble {when} {what}")
        raise self._trouble(where)

    def _trouble(self, where: Where) -> Exception:
        if where == "store":
            return StoreTroubleError("The store cannot be used: it is away for a while.")
        return self.rng.choice(
            [
                StorageTroubleError("S3 answered 503 Slow Down"),
                StorageTroubleError("no answer within 60 s"),
                OSError(errno.ENOSPC, "No space left on device"),
            ]
        )

    def _chance(self, share: float) -> bool:
        return share > 0 and self.rng.random() < share
