"""How rows become chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.service.chunk_cutter import ChunkCutter
from airflow_batch_llm.service.plan_stage import PlanStage
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.worker_wire import RowLine, decompress, read_lines

TOKENS = st.lists(st.one_of(st.integers(0, 12), st.integers(90, 400)), min_size=1, max_size=40)


@given(tokens=TOKENS, added=st.integers(1, 40))
def test_every_row_is_in_one_chunk_whatever_its_size(tmp_path_factory: object, tokens: list[int], added: int) -> None:
    """Rows with more tokens than a chunk may have among them."""
    folder: Path = tmp_path_factory.mktemp("storage")  # type: ignore[attr-defined]
    storage = LocalStorage(folder)
    stage = PlanStage(storage, "plan", chunk_rows=7, chunk_tokens=100)
    cutter = ChunkCutter(stage)
    for at in range(0, len(tokens), added):
        some = np.array(tokens[at : at + added])
        bodies = pa.array([f'{{"n":{at + place}}}' for place in range(len(some))])
        cutter.add(np.arange(at, at + len(some)), bodies, some)
    cutter.finish()
    found = []
    for chunk in stage.chunks:
        with storage.open(chunk.storage_key) as stream:
            lines = list(read_lines(decompress(stream.read()), RowLine))
        assert len(lines) == chunk.rows <= 7
        assert chunk.tokens == sum(tokens[line.row] for line in lines)
        assert chunk.tokens <= 100 or chunk.rows == 1
        found += [line.row for line in lines]
    assert found == list(range(len(tokens)))
