"""Cutting ordered rows into chunks, by rows and by estimated tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.service.plan_stage import PlanStage


class ChunkCutter:
    """Takes rows in the order in which they are to be asked. Holds one chunk in memory.

    :param later: whether these chunks wait until the batch's canary has passed.
    """

    def __init__(self, stage: PlanStage, *, later: bool = False) -> None:
        self._stage = stage
        self._later = later
        self._lines: list[bytes] = []
        self._rows = 0
        self._tokens = 0

    def add(self, rows: np.ndarray[Any, Any], bodies: pa.Array, tokens: np.ndarray[Any, Any]) -> None:
        """Rows by number, each with its request body (a JSON object) and an estimate of its tokens."""
        lines = _lines(rows, bodies)
        sums = np.concatenate([[0], np.cumsum(tokens)])
        at = 0
        while at < len(rows):
            take = self._fitting(sums, at, len(rows))
            if take:
                self._lines.append(_bytes(lines, at, take))
                self._rows += take
                self._tokens += int(sums[at + take] - sums[at])
                at += take
            else:
                self.finish()

    def finish(self) -> None:
        """Ends the chunk that is begun."""
        if self._rows:
            self._stage.add_packed(b"".join(self._lines), self._rows, self._tokens, later=self._later)
        self._lines, self._rows, self._tokens = [], 0, 0

    def _fitting(self, sums: np.ndarray[Any, Any], at: int, end: int) -> int:
        """How many of the rows from ``at`` on go into the chunk; a row that is too large for any has one of its own."""
        room = self._stage.chunk_tokens - self._tokens
        by_tokens = int(np.searchsorted(sums, sums[at] + room, side="right")) - 1 - at
        take = min(by_tokens, self._stage.chunk_rows - self._rows, end - at)
        return max(take, 0 if self._rows else 1)  # less than none: the chunk has more tokens than one should


def _lines(rows: np.ndarray[Any, Any], bodies: pa.Array) -> pa.Array:
    """The lines of a chunk, as :class:`airflow_batch_llm.worker_wire.RowLine` is written."""
    text = pa.large_string()
    return pc.binary_join_element_wise(
        pa.scalar('{"row":', text),
        pa.array(rows).cast(text),
        pa.scalar(',"body":', text),
        bodies.cast(text),
        pa.scalar("}\n", text),
        pa.scalar("", text),
    )


def _bytes(lines: pa.Array, at: int, count: int) -> bytes:
    """Consecutive texts as they lie in memory, one behind the other."""
    _, offsets, content = lines.buffers()
    edges = np.frombuffer(offsets, np.int64)
    start, end = edges[lines.offset + at], edges[lines.offset + at + count]
    return bytes(content.slice(int(start), int(end - start)))
