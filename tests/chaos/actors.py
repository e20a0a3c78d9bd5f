"""What all actors of a schedule have in common, and the smallest of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from airflow_batch_llm.errors import NoAnswerError, RefusedError
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.duties import DutyRunner
from airflow_batch_llm.store.database import StoreTroubleError
from tests.chaos.seams import Process, WorkerCrash
from tests.chaos.world import World


@dataclass(frozen=True)
class Act:
    """One thing that an actor may do now, and how likely it is beside the others."""

    name: str
    do: Callable[[], str | None]
    """Gives what came of it, for the log."""
    weight: float = 1.0


class Actor(Protocol):
    """Somebody who does one thing at a time."""

    name: str
    busy: bool

    def acts(self) -> Sequence[Act]:
        """What it may do now; nothing, if it has nothing to do."""


def answered(call: Callable[[], Any]) -> Any:
    """What a call of the service gives; of a refusal, or of no answer, the error itself."""
    try:
        return call()
    except (RefusedError, NoAnswerError) as error:
        return error


def said(answer: Any) -> str:
    if isinstance(answer, RefusedError):
        return f"refused: {answer.code}"
    return "no answer" if isinstance(answer, NoAnswerError) else "done"


JUMPS: Final = (1.0, 5.0, 12.0, 31.0, 95.0, 4_000.0)
"""Seconds: within a lease, beyond one, beyond a completion window."""


@dataclass
class Clock:
    """Time goes on."""

    world: World
    name: str = "clock"
    busy: bool = False
    weights: ClassVar[Sequence[float]] = (3.0, 3.0, 3.0, 2.0, 0.7, 0.1)

    def acts(self) -> Sequence[Act]:
        return [
            Act(f"+{jump:.0f} s", lambda jump=jump: self._jump(jump), weight)  # type: ignore[misc]
            for jump, weight in zip(JUMPS, self.weights, strict=True)
        ]

    def _jump(self, seconds: float) -> None:
        self.world.now += seconds


@dataclass
class DutyProcess:
    """A planner or an assembler, with the service's code for it."""

    world: World
    kind: DutyKind
    number: int
    busy: bool = False
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.kind}-{self.number}"
        self.process = Process(self.name)
        self._start()

    def acts(self) -> Sequence[Act]:
        return [Act("does a duty", self.work)]

    def work(self) -> str:
        try:
            with self.world.seams.running(self.process):
                worked = self._runner.run_once()
        except WorkerCrash:
            return self._died()
        except StoreTroubleError as error:
            return f"broke off: {error}"
        except Exception as error:  # noqa: BLE001 (the process logs it and goes on, and so does this one)
            return f"broke off: {type(error).__name__}: {error}"
        return "worked" if worked else "nothing to do"

    def close(self) -> None:
        self._runner.context.life._database.close()

    def _start(self) -> None:
        holder = f"{self.name}:{self.process.life}"
        self._runner = DutyRunner(self.kind, holder, self.world.duty_context())

    def _died(self) -> str:
        """Its service starts another one, and perhaps frees at once what the dead one held."""
        holder = self._runner.holder
        self.close()
        self._start()
        if self.world.rng.random() < 0.5:
            self.world.watch.process_lost(holder)
            self.world.state.duties.free_those_of(holder)
            return "dead; its duties are free"
        return "dead; its lease stays"


@dataclass
class Tidy:
    """What the service does every few seconds beside its duties."""

    world: World
    name: str = "tidy"
    busy: bool = False

    def acts(self) -> Sequence[Act]:
        life = self.world.state.life
        verbs = (life.expire_due, life.raise_due, life.settle_ending, self.world.state.watching.pause_due)
        return [Act(verb.__name__, lambda verb=verb: self._do(verb)) for verb in verbs]  # type: ignore[misc]

    def _do(self, verb: Callable[[], None]) -> str:
        try:
            with self.world.seams.running(self.world.service):
                verb()
        except WorkerCrash:
            return "the service died"
        except StoreTroubleError:
            return "broke off"
        return "done"
