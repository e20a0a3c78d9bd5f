"""Cutting a chunk into smaller ones, so that a row that kills what works on it is found, and no other is blamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from airflow_batch_llm.store.tables import batches, chunks
from airflow_batch_llm.store.waiting import waiting_state_in

_OF_THE_WHOLE: Final = (
    *("batch_id", "team", "model", "endpoint", "priority", "due", "turn", "storage_key", "bytes", "sha256"),
)
"""What the pieces of a chunk have in common: they are about rows of the same stored lines."""


@dataclass(frozen=True)
class Pieces:
    """How the rows of a chunk go on that have no result yet."""

    kept: Sequence[int]
    """They stay in the chunk."""
    cut: Sequence[Sequence[int]]
    """Each of these gets a chunk of its own."""
    alone: bool
    """Whether the engine gets the cut ones one at a time, with nothing else."""


def add_pieces(connection: Connection, chunk: Mapping[str, Any], pieces: Pieces) -> dict[str, Any]:
    """Adds the cut pieces as chunks that wait like the batch's others; gives what is to be changed in the chunk itself.

    With nothing to keep, the chunk becomes the first piece. The caller holds the batch's row.
    """
    cut = [list(rows) for rows in pieces.cut if rows]
    kept, alone = list(pieces.kept), bool(chunk["alone"])
    if not kept and cut:
        kept, alone, cut = cut[0], pieces.alone, cut[1:]
    undone = len(kept) + sum(map(len, cut))
    if cut:
        _insert(connection, chunk, cut, undone, alone=pieces.alone)
    return {
        "only": kept,
        "alone": alone,
        "suspects": None,
        "rows": chunk["rows_done"] + len(kept),
        "tokens": _share(chunk, kept, undone),
        "barren": 0,
    }


def _insert(
    connection: Connection, chunk: Mapping[str, Any], cut: list[list[int]], undone: int, *, alone: bool
) -> None:
    last = connection.scalar(select(func.max(chunks.c.number)).where(chunks.c.batch_id == chunk["batch_id"])) or 0
    state = waiting_state_in(connection, chunk["batch_id"])
    same = {name: chunk[name] for name in _OF_THE_WHOLE} | {"state": state, "alone": alone}
    connection.execute(
        insert(chunks),
        [
            same | {"number": last + place, "only": rows, "rows": len(rows), "tokens": _share(chunk, rows, undone)}
            for place, rows in enumerate(cut, start=1)
        ],
    )
    connection.execute(
        update(batches).where(batches.c.id == chunk["batch_id"]).values(chunks_total=batches.c.chunks_total + len(cut))
    )


def _share(chunk: Mapping[str, Any], rows: Sequence[int], undone: int) -> int:
    tokens: int = chunk["tokens"]
    return tokens * len(rows) // max(1, undone)
