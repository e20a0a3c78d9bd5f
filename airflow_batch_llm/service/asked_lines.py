"""The lines that a batch's chunks asked, for some of its rows: found by the rows' places, one or few chunks a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from airflow_batch_llm.service.committed_results import known_keys
from airflow_batch_llm.service.results import parsed_cursor
from airflow_batch_llm.service.row_prompts import Messages, first_row, stored_prompts
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.shown_parts import ShownParts

MOST_CHUNKS: Final = 10
"""Chunks that are read for a page."""


@dataclass(frozen=True)
class AskedLines:
    """Finds the prompts of rows while the chunks of their batch are kept."""

    state: ServiceState
    record: Mapping[str, Any]

    def of(self, cursors: Mapping[int, str]) -> Iterator[tuple[int, Messages]]:
        """The prompts of the rows that a chunk has asked, by row number, each once; ``cursors`` are those behind them.

        Rows that equal others, or whose result was known, were not asked; and of a table that has ended the row
        numbers alone do not tell the chunk.
        """
        if self.record["staged_dropped_at"] is not None or self.record["plan_key"] is None or self.record["dry_run"]:
            return
        for key, rows in list(self._chunks(cursors).items())[:MOST_CHUNKS]:
            try:
                yield from stored_prompts(self.state.storage, key, rows)
            except FileNotFoundError:  # dropped just now
                return

    def _chunks(self, cursors: Mapping[int, str]) -> Mapping[str, set[int]]:
        in_parts = {row: parsed_cursor(cursor)[1] for row, cursor in cursors.items() if cursor.startswith("part-")}
        numbered = {row for row, cursor in cursors.items() if cursor.startswith("row-")}
        found: dict[str, set[int]] = defaultdict(set)
        if in_parts:
            known = len(known_keys(self.state, self.record))
            places = {row: number - known + 1 for row, number in in_parts.items() if number >= known}
            keys = ShownParts(self.state.database).chunk_keys(self.record["id"], set(places.values()))
            for row, place in places.items():
                if place in keys:
                    found[keys[place]].add(row)
        if numbered:
            self._add_numbered(sorted(numbered), found)
        return found

    def _add_numbered(self, rows: list[int], found: dict[str, set[int]]) -> None:
        """A request file's chunks have its rows in their order, so a search by halves finds the one of a row."""
        count = ShownParts(self.state.database).planned_chunks(self.record["id"])
        firsts: dict[int, int] = {}
        for row in rows:
            if count:
                found[self._key(self._chunk_of(row, count, firsts))].add(row)

    def _chunk_of(self, row: int, count: int, firsts: dict[int, int]) -> int:
        """The last chunk that begins with this row or an earlier one."""
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            if middle not in firsts:
                firsts[middle] = first_row(self.state.storage, self._key(middle))
            if firsts[middle] <= row:
                low = middle
            else:
                high = middle
        return low

    def _key(self, number: int) -> str:
        return f"{self.record['plan_key']}/chunks/{number:06d}.jsonl.zst"
