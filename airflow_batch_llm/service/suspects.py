"""Finding the row that kills engines, by cutting its chunk: it ends as an error, and no other row is blamed.

When an engine dies, the rows that were with it are suspects. They get a chunk of their own, and a worker that claims
that gives them to its engine one at a time, with nothing else. A row that the engine dies of then, alone, and again
alone, is an error from then on. A lease that ran out blames nobody: its worker may just have lost its machine, or may
never have had a row. Only a chunk that was begun again and again without any result is cut, until one row is left of
it; and that is an error only once its workers have ended as often with nothing but it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.chunks import ChunkLease
from airflow_batch_llm.store.splitting import Pieces
from airflow_batch_llm.worker_wire import CondemnedRow, ResultLine, RowLine, unpack

ENGINE_DEATHS: Final = 2
"""How often an engine must die of a row that it has alone. One more died before, with the row in company."""
BARREN_ATTEMPTS: Final = 5
"""How often in a row workers may begin a chunk and be lost, without a result of any of its rows, before it is cut."""
_PIECES: Final = 8
"""Into how many: from 2,000 rows to one in four steps."""


def done_rows(state: ServiceState, chunk_id: int) -> list[int]:
    """The rows of a chunk that a committed part has."""
    rows: list[int] = []
    for key in state.chunks.parts_of_chunk(chunk_id):
        with state.storage.open(key) as stream:
            rows += [line.row for line in unpack(stream, ResultLine)]
    return rows


def cut_where_needed(
    state: ServiceState, chunk: Mapping[str, Any], done: Sequence[int]
) -> tuple[Mapping[str, Any], list[CondemnedRow]]:
    """A chunk that was just claimed, as it is to be worked on, and the rows of it that are not to be asked any more."""
    lease = ChunkLease(chunk["id"], chunk["attempt"])
    if chunk["suspects"] is not None:
        chunk = state.chunks.split(lease, _apart(chunk, _undone(state, chunk, done)))
    elif chunk["barren"] >= BARREN_ATTEMPTS and (undone := _undone(state, chunk, done)):
        if len(undone) == 1 and chunk["alone"]:
            return chunk, [_given_up(undone[0])]
        chunk = state.chunks.split(lease, _smaller(undone, alone=chunk["alone"]))
    return chunk, _condemned(chunk, done)


def _apart(chunk: Mapping[str, Any], undone: Sequence[int]) -> Pieces:
    """The rows that were with an engine when it died on one side, the others on the other."""
    suspects = set(chunk["suspects"])
    kept = [row for row in undone if row not in suspects]
    return Pieces(kept=kept, cut=[[row for row in undone if row in suspects]], alone=True)


def _smaller(undone: Sequence[int], *, alone: bool) -> Pieces:
    if len(undone) == 1:  # what ended its workers may have been a row of another chunk, so it is tried alone
        return Pieces(kept=[], cut=[undone], alone=True)
    size = -(-len(undone) // _PIECES)
    pieces = [undone[start : start + size] for start in range(0, len(undone), size)]
    return Pieces(kept=pieces[0] if pieces else [], cut=pieces[1:], alone=alone)


def _condemned(chunk: Mapping[str, Any], done: Sequence[int]) -> list[CondemnedRow]:
    return [
        CondemnedRow(
            row=int(row),
            code="engine_died",
            message=f"The engine died of this row: {deaths} times while it had it alone. It was not asked again.",
        )
        for row, deaths in (chunk["deaths"] or {}).items()
        if deaths >= ENGINE_DEATHS and int(row) not in done
    ]


def _given_up(row: int) -> CondemnedRow:
    message = (
        f"{BARREN_ATTEMPTS} workers in a row that had this row alone ended without a word. It was not asked again."
    )
    return CondemnedRow(row=row, code="worker_lost", message=message)


def _undone(state: ServiceState, chunk: Mapping[str, Any], done: Sequence[int]) -> list[int]:
    """The rows of a chunk without a result, in the order in which they are asked."""
    rows = chunk["only"]
    if rows is None:
        with state.storage.open(chunk["storage_key"]) as stream:
            rows = [line.row for line in unpack(stream, RowLine)]
    known = set(done)
    return [row for row in rows if row not in known]
