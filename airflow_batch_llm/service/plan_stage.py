"""What every planner stages: chunks of rows to be asked, and the results that are known before anything runs.

Holds one chunk of rows and one of results in memory, and a bit for every row of an earlier generation.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from airflow_batch_llm.service.blocks import BLOCK_BYTES
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.life import PlannedChunk
from airflow_batch_llm.worker_wire import ResultLine, RowLine, compress, pack

ROWS_FILE: Final = "rows.parquet"
RESULTS_FOLDER: Final = "results"


@dataclass
class PlanStage:
    """Chunks and known results below ``prefix`` in storage. They count once a plan that names them is activated."""

    storage: Storage
    prefix: str
    chunk_rows: int
    chunk_tokens: int
    chunks: list[PlannedChunk] = field(default_factory=list)
    results_stored: int = 0
    _waiting: list[RowLine] = field(default_factory=list)
    _waiting_tokens: int = 0
    _results: list[ResultLine] = field(default_factory=list)
    _results_bytes: int = 0
    _kept: bytearray = field(default_factory=bytearray)
    """One bit a row: whether its result was kept."""

    def keep_answers(self, done_before: Iterable[ResultLine]) -> None:
        """Takes over the answers of the generation before: their rows are not asked again."""
        for line in done_before:
            if line.status == "success":
                place, bit = divmod(line.row, 8)
                self._kept.extend(bytes(max(0, place + 1 - len(self._kept))))
                self._kept[place] |= 1 << bit
                self.add_result(line)

    def kept_among(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """Of consecutive rows, which were kept: a boolean each."""
        bits = np.unpackbits(np.frombuffer(bytes(self._kept), np.uint8), bitorder="little")
        found = np.zeros(count, dtype=bool)
        known = bits[first : first + count]
        found[: len(known)] = known
        return found

    def chunks_longest_first(self) -> list[PlannedChunk]:
        """The chunks with the most tokens first, so that the last ones at work are short ones; the canary's before all.

        Those of about the same length stay in their order, which brings common beginnings together.
        """
        step = max(1, self.chunk_tokens // 8)
        ordered = sorted(self.chunks, key=lambda chunk: (chunk.later, -(chunk.tokens // step)))
        return [dataclasses.replace(chunk, number=number) for number, chunk in enumerate(ordered)]

    def is_kept(self, row: int) -> bool:
        place, bit = divmod(row, 8)
        return place < len(self._kept) and bool(self._kept[place] >> bit & 1)

    def add_result(self, line: ResultLine) -> None:
        """A result that is known before anything runs is stored like a part's, in pieces."""
        self._results.append(line)
        self._results_bytes += _size(line)
        if len(self._results) >= self.chunk_rows or self._results_bytes >= BLOCK_BYTES:
            self._store_results()

    def add_row(self, line: RowLine, tokens: int) -> None:
        """A row to be asked, with an estimate of its tokens, prompt and answer together."""
        full = len(self._waiting) >= self.chunk_rows or self._waiting_tokens + tokens > self.chunk_tokens
        if self._waiting and full:
            self._cut()
        self._waiting.append(line)
        self._waiting_tokens += tokens

    def add_packed(self, lines: bytes, rows: int, tokens: int, *, later: bool = False) -> None:
        """A whole chunk of rows to be asked, as the lines that it consists of; ``later``, after the batch's canary."""
        self._store_chunk(compress(lines), rows, tokens, later=later)

    def finish(self) -> None:
        """Stores what is left in memory."""
        self._cut()
        self._store_results()

    def _store_results(self) -> None:
        if self._results:
            key = f"{self.prefix}/{RESULTS_FOLDER}/{self.results_stored:012d}.jsonl.zst"
            self.storage.put(key, pack(self._results))
            self.results_stored += len(self._results)
            self._results, self._results_bytes = [], 0

    def _cut(self) -> None:
        if self._waiting:
            self._store_chunk(pack(self._waiting), len(self._waiting), self._waiting_tokens)
            self._waiting, self._waiting_tokens = [], 0

    def _store_chunk(self, content: bytes, rows: int, tokens: int, *, later: bool = False) -> None:
        number = len(self.chunks)
        key = f"{self.prefix}/chunks/{number:06d}.jsonl.zst"
        self.storage.put(key, content)
        self.chunks.append(
            PlannedChunk(
                number=number,
                rows=rows,
                tokens=tokens,
                storage_key=key,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                later=later,
            )
        )


def _size(line: ResultLine) -> int:
    """About what a result takes in memory."""
    texts = (line.output, line.embedding, line.error, *(line.outputs or ()))
    return sum(len(text) for text in texts if text) + len(memoryview(line.response))
