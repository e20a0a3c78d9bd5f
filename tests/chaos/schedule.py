"""One schedule: who does what, in which order and with which faults, all from one seed; then rest, and the promises."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.notifier import Notifier
from tests.chaos.actors import Act, Actor, Clock, DutyProcess, Tidy, answered
from tests.chaos.answers import Engine
from tests.chaos.client_actor import Client, FileClient, TableClient
from tests.chaos.invariants import broken
from tests.chaos.stores import FreshStore, memory
from tests.chaos.watch import ENDED
from tests.chaos.worker_actor import WorkerActor
from tests.chaos.world import LEASE_SECONDS, World

MOST_ROUNDS: Final = 40
"""How often everybody gets a turn after the faults, until nothing is left to do."""
ROUND_SECONDS: Final = 61.0
"""How far the clock goes on in each: beyond every lease and every pause."""


@dataclass
class Outcome:
    """What a schedule came to."""

    seed: int
    steps: int
    broken: list[str]
    log: list[str]
    faults: Counter[str]
    statuses: Counter[str]
    rows: int
    """Rows of batches that ended and were looked at."""
    asked_again: int
    """Rows that the engine was asked more than once, each time for a reason."""


def run(seed: int, fresh: FreshStore, *, steps: int | None = None) -> Outcome:
    """Runs the schedule of a seed; the same seed gives the same one."""
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=memory()))
    try:
        rng = random.Random(seed)
        world = World(folder, fresh(), rng)
        with world.in_place():
            world.open()
            with closing(world):
                return Schedule(seed, world, steps or rng.randint(30, 110)).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        logging.disable(logging.NOTSET)


@dataclass
class Schedule:
    """The actors of one world, and whose turn it is."""

    seed: int
    world: World
    steps: int
    engine: Engine = field(default_factory=Engine)
    _done: int = 0

    def __post_init__(self) -> None:
        rng = self.world.rng
        sizes = [rng.randint(5, 60) if rng.random() < 0.4 else rng.randint(5, 15) for _ in range(rng.randint(1, 4))]
        self.clients: list[Client] = [
            (TableClient if rng.random() < 0.7 else FileClient)(self.world, f"c{number}", size)
            for number, size in enumerate(sizes)
        ]
        self.identity = rng.choice([None, "an-engine"])
        self.server = rng.choice([None, "a-server"])
        self.workers = [self._worker(f"w{number}") for number in range(rng.randint(1, 4))]
        self.duties = [
            DutyProcess(self.world, kind, number)
            for kind in (DutyKind.PLAN, DutyKind.ASSEMBLE)
            for number in range(rng.choice([1, 2, 2]))
        ]
        self.tidy = Tidy(self.world)
        # No webhook is set, so it never sends anything.
        self._notifier = Notifier(
            "notifier", (), self.world.state.database, httpx.Client(transport=self.world.transport)
        )
        self.actors: list[Actor] = [*self.clients, *self.workers, *self.duties, self.tidy, Clock(self.world)]
        self.world.seams.meanwhile = self._meanwhile

    def run(self) -> Outcome:
        self.world.seams.armed = True
        for _ in range(self.steps):
            self._step()
        self.world.seams.calm()
        self.world.log("--- the faults stop")
        self._rest()
        found = broken(self.world)
        for duty in self.duties:
            duty.close()
        return self._outcome(found)

    def _step(self) -> None:
        actor = self.world.rng.choices(self.actors, [_eagerness(actor) for actor in self.actors])[0]
        acts = [] if actor.busy else actor.acts()
        if acts:
            self._do(actor, self.world.rng.choices(acts, [act.weight for act in acts])[0])

    def _do(self, actor: Actor, act: Act) -> None:
        self._done += 1
        place = len(self.world.lines)
        self.world.log(f"{actor.name} {act.name}")
        actor.busy = True
        self.world.depth += 1
        try:
            outcome = act.do()
        finally:
            self.world.depth -= 1
            actor.busy = False
        if outcome and place == len(self.world.lines) - 1:
            self.world.lines[place] += f": {outcome}"
        elif outcome:
            self.world.log(f"= {actor.name} {act.name}: {outcome}")

    def _meanwhile(self) -> None:
        """What the others do while one stands still, often for longer than its lease."""
        if self.world.rng.random() < 0.5:
            self.world.now += LEASE_SECONDS + 1
        for _ in range(self.world.rng.choice([2, 8, 20])):
            self._step()

    def _rest(self) -> None:
        """Everybody works on, without faults, until all is done. Two fresh workers do what the others left."""
        fresh = [self._worker(f"fresh{number}") for number in range(2)]
        for _ in range(MOST_ROUNDS):
            self.world.now += ROUND_SECONDS
            self._resume_all()
            for client in self.clients:
                if client.pending:
                    self._do(client, Act("submits", client.submit))
            self._round(fresh)
            if not any(client.pending for client in self.clients) and self._at_rest():
                break
        for worker in (*self.workers, *fresh):
            for again in range(3 if worker.acts() else 0):  # what wakes up last of all must find nothing to do
                self._do(worker, worker.acts()[-1 - again % len(worker.acts())])

    def _resume_all(self) -> None:
        """Whoever paused a batch, it goes on; and a canary is judged well as soon as it is done."""
        for row in self.world.watch.rows("SELECT id, paused FROM batches WHERE paused IS NOT NULL ORDER BY id"):
            self.world.log(f"{row.id[:14]}, paused ({row.paused}), goes on")
            answered(lambda batch_id=row.id: self.clients[0].client.resume(batch_id))

    def _round(self, workers: Sequence[WorkerActor]) -> None:
        for duty in self.duties:
            while duty.work() == "worked":
                pass
        for act in self.tidy.acts():
            act.do()
        for worker in workers:
            self._work(worker)
        while self._notifier.run_once():
            pass

    def _work(self, worker: WorkerActor) -> None:
        """A healthy worker does all that there is; one that a row ends is started again."""
        while True:
            if not worker.worker_id:
                worker.register()
            if not worker.claim().startswith("chunk"):
                return
            worker.fetch()
            while worker.works:
                acts = {act.name.partition(" ")[0]: act for act in worker.acts()}
                (acts.get("answers") or acts.get("commits") or acts["gives"]).do()

    def _at_rest(self) -> bool:
        watch = self.world.watch
        undone = watch.rows("SELECT batch_id FROM duties WHERE NOT done")
        return not undone and all(b.deleted or b.statuses[-1] in ENDED for b in watch.batches.values())

    def _worker(self, name: str) -> WorkerActor:
        return WorkerActor(self.world, self.engine, name, self.identity, self.server)

    def _outcome(self, found: list[str]) -> Outcome:
        ended = [batch for batch in self.world.watch.batches.values() if batch.statuses and not batch.deleted]
        return Outcome(
            seed=self.seed,
            steps=self._done,
            broken=found,
            log=self.world.lines,
            faults=self.world.seams.counts,
            statuses=Counter(batch.statuses[-1] for batch in ended),
            rows=sum(len(batch.source or ()) or len(batch.committed) for batch in ended),
            asked_again=sum(times > 1 for times in self.engine.asked.values()),
        )


def _eagerness(actor: Actor) -> float:
    """Workers act most often: a batch has many rows."""
    if isinstance(actor, WorkerActor):
        return 3.0
    return 1.0 if isinstance(actor, DutyProcess) else 0.7
