"""A worker whose every step is a seed's: claims, rows, parts and calls are made by the worker's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from airflow_batch_llm.errors import LeaseLostError, NoAnswerError, RefusedError
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.worker.delivery import Delivery
from airflow_batch_llm.worker.work import ChunkWork, may_send
from airflow_batch_llm.worker_wire import Begun, Claim, Registration, RowLine, ServedModel
from tests.chaos.actors import Act, said
from tests.chaos.answers import Engine, end_of, text_of
from tests.chaos.in_process import Remembering, link_to
from tests.chaos.world import TOKEN, World

MODEL: Final = "m"
MOST_WORKS: Final = 2


@dataclass
class WorkerActor:
    """One worker process after another under one name."""

    world: World
    engine: Engine
    name: str
    identity: str | None
    server: str | None
    """Where all workers of the schedule ask the same engine, its name."""
    busy: bool = False
    works: list[ChunkWork] = field(default_factory=list)
    worker_id: str = ""
    _unfetched: list[Claim] = field(default_factory=list)
    """Claims whose rows did not come yet."""

    def __post_init__(self) -> None:
        self.engine.shared_by.append(self)
        self._transport = Remembering(self.world.transport)
        self.link = link_to(self._transport, TOKEN)
        self._delivery = Delivery(self.link)

    def acts(self) -> Sequence[Act]:
        if not self.worker_id:
            return [Act("registers", self.register)]
        acts = [Act("dies", self.die, 0.15), Act("starts again", self.restart, 0.1)]
        held = [*(work.claim for work in self.works), *self._unfetched]
        if len(held) < MOST_WORKS and not any(claim.alone for claim in held):
            acts.append(Act("claims", self.claim, 2.0))
        if self._unfetched:
            acts.append(Act("fetches rows", self.fetch, 3.0))
        sent = self._transport.sent
        if sent:
            acts += [Act("repeats its last call", lambda: self._again(sent[-1]), 0.3)]
            acts += [Act("an old call arrives late", lambda: self._again(self.world.rng.choice(sent)), 0.3)]
        for work in self.works:
            acts += self._acts_on(work)
        return acts

    def _acts_on(self, work: ChunkWork) -> list[Act]:
        def act(name: str, do: Callable[[ChunkWork], str], weight: float) -> Act:
            return Act(f"{name} chunk {work.claim.chunk_id} attempt {work.claim.attempt}", lambda: do(work), weight)

        acts = [act("extends", self._beat, 1.0), act("gives back", self._release, 3.0 if work.engine_died else 0.3)]
        if may_send(work, self.works) and not (work.stopping or work.engine_died):
            acts.append(act("answers rows of", self._answer, 3.0))
        if work.finished or work.unsent_parts:
            acts += [act("delivers of", self._flush, 2.0), act("stores a part of", self._only_put, 0.3)]
        if work.all_answered:
            acts.append(act("commits", self._commit, 3.0))
        return acts

    def register(self) -> str:
        served = ServedModel(model=MODEL, endpoint=CHAT_COMPLETIONS, engine_identity=self.identity)
        self.world.watch.leases_ended_of(self.name)
        registration = Registration(name=self.name, version="1", models=[served], server=self.server)
        try:
            self.worker_id = self.link.register(registration).worker_id
        except (RefusedError, NoAnswerError) as error:
            return said(error)
        return "done"

    def die(self) -> str:
        lost = sum(len(work.finished) for work in self.works)
        self.works, self._unfetched, self.worker_id = [], [], ""
        self.world.seams.counts["worker killed"] += 1
        return f"{lost} answers are lost with it"

    def restart(self) -> str:
        self.die()
        return self.register()

    def claim(self) -> str:
        at = self.world.now
        try:
            claim = self.link.claim(self.worker_id)
        except NoAnswerError:
            return "no answer"
        except RefusedError as error:
            self.worker_id = ""
            return said(error)
        if claim is None:
            return "nothing to do"
        self.world.watch.granted(claim, self.name, at)
        self._unfetched.append(claim)
        return f"chunk {claim.chunk_id} attempt {claim.attempt} of {claim.batch_id}; done are {claim.done}"

    def fetch(self) -> str:
        claim = self._unfetched.pop(0)
        try:
            content = self.link.rows(claim)
        except (RefusedError, NoAnswerError, LeaseLostError) as error:
            return f"dropped chunk {claim.chunk_id}: {said(error)}"
        work = self.world.loops.run(_work_of(claim, content))
        self.world.watch.asked(claim, work.todo)
        self.works.append(work)
        return f"{len(work.todo)} rows of chunk {claim.chunk_id}"

    def _answer(self, work: ChunkWork) -> str:
        if not work.begun:
            heard = self._sending(work, lambda: self._begin(work))
            if not work.begun:
                return f"not begun: {heard}"
        count = 1 if work.claim.alone else self.world.rng.randint(1, len(work.todo))
        lines = [work.todo.popleft() for _ in range(count)]
        ends = {end_of(text_of(line)) for line in lines}
        if "worker_lost" in ends:
            self.engine.asked.update((work.claim.batch_id, line.row) for line in lines)
            return f"{[line.row for line in lines]} end it: {self.die()}"
        if "engine_died" in ends:
            return self._ends_engine(work, lines)
        for line in lines:
            work.finish(self.engine.ask(work.claim, line, work.check))
        return f"{[line.row for line in lines]}"

    def _begin(self, work: ChunkWork) -> Begun:
        at = self.world.now
        begun = self.link.begin(work.claim)
        self.world.watch.held(work.claim, self.name, at)
        work.begun = not (begun.wait or begun.stop)
        return begun

    def _ends_engine(self, work: ChunkWork, lines: Sequence[RowLine]) -> str:
        """The engine died of one of these rows, and with it went whatever else was there."""
        self.engine.asked.update((work.claim.batch_id, line.row) for line in lines)
        work.todo.extendleft(reversed(lines))
        self._engine_is_gone()
        work.suspects.update(line.row for line in lines)
        for other in self.engine.shared_by if self.server else ():
            if other is not self:
                other._engine_is_gone()
        self.world.seams.counts["engine died"] += 1
        return f"{[line.row for line in lines]} end the engine"

    def _engine_is_gone(self) -> None:
        """Whatever this worker has begun may have had rows there."""
        for work in self.works:
            if not work.engine_died:
                work.end_by_engine_death()
                there = list(work.todo)[: 1 if work.claim.alone else 2] if work.begun else []
                work.suspects.update(line.row for line in there)

    def _beat(self, work: ChunkWork) -> str:
        return self._sending(work, lambda: self._extend(work.claim, []))

    def _flush(self, work: ChunkWork) -> str:
        work.make_part()
        return self._sending(work, lambda: self._delivery._deliver(work, self._extend))

    def _only_put(self, work: ChunkWork) -> str:
        """Dies, or is about to, before it says that it stored a part."""
        work.make_part()
        part = work.unsent_parts[0]
        return self._sending(work, lambda: self.link.put_part(work.claim, part.record.number, part.content))

    def _commit(self, work: ChunkWork) -> str:
        work.make_part()
        self.world.watch.lease_ended(work.claim.chunk_id, work.claim.attempt)
        outcome = self._sending(work, lambda: self._delivery._deliver(work, self.link.commit))
        if outcome == "done":
            self._drop(work)
        return outcome

    def _release(self, work: ChunkWork) -> str:
        how = "engine_died" if work.engine_died else self.world.rng.choice(["drained", "stopped", "engine_died"])
        work.make_part()
        more: dict[str, Any] = {"outcome": how, "rows_lost": len(work.todo) if how == "engine_died" else 0}
        if work.engine_died:
            more["in_flight"] = sorted(work.suspects)
        elif how == "engine_died" and work.begun and not work.claim.alone:  # of nothing that is in these rows
            more["in_flight"] = [line.row for line in list(work.todo)[:2]]
        self.world.watch.lease_ended(work.claim.chunk_id, work.claim.attempt)

        def release(claim: Claim, parts: list[Any]) -> None:
            self.link.release(claim, parts, **more)

        outcome = self._sending(work, lambda: self._delivery._deliver(work, release))
        if outcome == "done":
            self._drop(work)
        return f"{how}: {outcome}"

    def _extend(self, claim: Claim, parts: list[Any]) -> Any:
        at = self.world.now
        extended = self.link.extend(claim, parts)
        self.world.watch.held(claim, self.name, at)
        return extended

    def _sending(self, work: ChunkWork, call: Callable[[], Any]) -> str:
        """Makes a call that needs the lease. A worker that hears that it was lost drops the chunk."""
        try:
            answer = call()
        except LeaseLostError:
            self._drop(work)
            return "lease lost"
        except (RefusedError, NoAnswerError) as error:
            return said(error)
        if getattr(answer, "wait", False):
            return "asked to wait"
        if getattr(answer, "stop", False):
            work.stopping = True
            return "asked to stop"
        return "done"

    def _again(self, request: httpx.Request) -> str:
        self.world.seams.counts["call repeated"] += 1
        if request.url.path.endswith("/register"):
            self.world.watch.leases_ended_of(self.name)
        what = f"{request.method} {request.url.path}"
        try:
            return f"{what}: HTTP {self._transport.again(request).status_code}"
        except httpx.HTTPError:
            return f"{what}: no answer"

    def _drop(self, work: ChunkWork) -> None:
        self.works = [other for other in self.works if other is not work]


async def _work_of(claim: Claim, content: bytes) -> ChunkWork:
    return ChunkWork.of(claim, content)
