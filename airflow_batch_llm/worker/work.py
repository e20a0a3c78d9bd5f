"""One claimed chunk inside a worker: its rows on their way, its finished results, its parts."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.judgement import engine_error
from airflow_batch_llm.worker_wire import Claim, PartRecord, ResultLine, RowLine, packed, unpack

PART_BYTES: Final = 64 << 20
"""The most of a part before it is compressed, or one result: the service reads a part as a whole."""


@dataclass
class Part:
    """Finished results, packed. Once made it is never changed, so sending it twice commits it once."""

    record: PartRecord
    content: bytes
    stored: bool = False


def lines_to_ask(claim: Claim, content: bytes) -> Iterator[RowLine]:
    """The lines of a chunk that the engine is to have: what no committed part has, and nobody condemned."""
    skipped = {*claim.done, *(row.row for row in claim.condemned)}
    only = None if claim.only is None else set(claim.only)
    for line in unpack(io.BytesIO(content), RowLine):
        if line.row not in skipped and (only is None or line.row in only):
            yield line


def may_claim(works: Collection[ChunkWork]) -> bool:
    """Whether a worker with these chunks has room for another: all rows are sent, and none of them must be alone."""
    return not any(work.todo or work.claim.alone for work in works)


def may_send(work: ChunkWork, works: Collection[ChunkWork]) -> bool:
    """Whether a worker with these chunks may give its engine a row of one. A row that must be alone waits for the
    others to end, so that nothing else is there that it could take along."""
    if work.claim.alone and (work.in_flight or len(works) > 1):
        return False
    return bool(work.todo)


@dataclass
class ChunkWork:
    """What the runner knows of one chunk. Its rows are in memory, which is what a chunk is bounded for."""

    claim: Claim
    check: AnswerCheck
    todo: deque[RowLine]
    loop: asyncio.AbstractEventLoop
    in_flight: dict[int, asyncio.Task[bool]] = field(default_factory=dict)
    """By row number."""
    finished: list[ResultLine] = field(default_factory=list)
    unsent_parts: list[Part] = field(default_factory=list)
    parts_made: int = 0
    tokens: int = 0
    """Tokens of the results since GPU time was last shared out."""
    gpu_seconds: float = 0.0
    """GPU time shared out and not yet in a part."""
    begun: bool = False
    """Whether the service knows that rows of it go to the engine."""
    failures: Counter[int] = field(default_factory=Counter)
    """How often a living engine failed to judge a row, by row number."""
    rows_lost: int = 0
    """Rows that were with the engine and were taken back."""
    suspects: set[int] = field(default_factory=set)
    """Rows that were with the engine when it died."""
    lost: bool = False
    stopping: bool = False
    engine_died: bool = False
    delivering: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever sends parts, so that none is sent by two at once."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a row finished or the chunk's fate changed."""

    @classmethod
    def of(cls, claim: Claim, content: bytes) -> ChunkWork:
        """The work that is left of a chunk: what no committed part has."""
        if hashlib.sha256(content).hexdigest() != claim.sha256:
            raise ValueError(f"Chunk {claim.chunk_id} did not arrive as it was stored: its SHA-256 differs.")
        work = cls(claim, AnswerCheck.of(claim), deque(lines_to_ask(claim, content)), asyncio.get_running_loop())
        for row in claim.condemned:
            work.finish(engine_error(row.row, row.message, whole=claim.whole, code=row.code))
        return work

    @property
    def all_answered(self) -> bool:
        return not self.todo and not self.in_flight

    def lease_lost(self) -> None:
        self.loop.call_soon_threadsafe(self._lose)

    def asked_to_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop)

    def finish(self, result: ResultLine) -> None:
        self.finished.append(result)
        self.tokens += (result.prompt_tokens or 0) + (result.completion_tokens or 0)
        self.changed.set()

    def give_back(self, line: RowLine) -> None:
        """Puts a row that got no judgement back to the front."""
        self.todo.appendleft(line)

    def abort_in_flight(self) -> None:
        """Takes the rows back that are with the engine."""
        for task in self.in_flight.values():
            if not task.done() and not task.cancelling():
                self.rows_lost += 1
                task.cancel()

    def end_by_engine_death(self) -> None:
        self.engine_died = True
        self.suspects.update(row for row, task in self.in_flight.items() if not task.done())
        self.abort_in_flight()
        self.changed.set()

    def make_part(self) -> None:
        """Packs what finished since the last part: one part, or several where the results are long."""
        finished, self.finished = self.finished, []
        for lines, content in packed(finished, PART_BYTES):
            self.unsent_parts.append(Part(self._record(lines, content), content))
            self.gpu_seconds = 0.0
            self.parts_made += 1

    def _record(self, lines: list[ResultLine], content: bytes) -> PartRecord:
        return PartRecord(
            number=self.parts_made,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            rows=len(lines),
            rows_failed=sum(line.status != "success" for line in lines),
            prompt_tokens=sum(line.prompt_tokens or 0 for line in lines),
            cached_tokens=sum(line.cached_tokens or 0 for line in lines),
            completion_tokens=sum(line.completion_tokens or 0 for line in lines),
            reasoning_tokens=sum(line.reasoning_tokens or 0 for line in lines),
            gpu_seconds=self.gpu_seconds,
        )

    def _lose(self) -> None:
        self.lost = True
        self.abort_in_flight()
        self.changed.set()

    def _stop(self) -> None:
        self.stopping = True
        self.abort_in_flight()
        self.changed.set()
