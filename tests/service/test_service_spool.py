"""Long texts beside the database, and rows in blocks: nothing of a text changes on the way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.service.blocks import ROW_BYTES, RowTooLargeError, check_row_sizes, cut
from airflow_batch_llm.service.long_answers import restored, shortened
from airflow_batch_llm.service.output_columns import RESULT
from airflow_batch_llm.service.spool import LONG, Spool

TEXTS = st.lists(
    st.one_of(
        st.none(),
        st.text(max_size=5),
        st.builds("{}{}".format, st.sampled_from(["\x01", "\x01\x01", "\x011:2"]), st.text(max_size=3)),
        st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=3), st.integers(300, 2_000)),
    ),
    max_size=20,
)
KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]


@given(columns=st.lists(TEXTS, max_size=3), kind=st.sampled_from(KINDS), skip=st.integers(0, 5))
def test_a_column_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, columns: list[list[str | None]], kind: pa.DataType, skip: int
) -> None:
    texts = [pa.array(column, pa.string()).cast(kind).slice(skip) for column in columns]
    with Spool(tmp_path_factory.mktemp("spool") / "texts") as spool:
        short = [spool.shortened(column) for column in texts]
        for column, stands in zip(texts, short, strict=True):
            assert stands.type == kind
            assert all(len(text) <= LONG for text in stands.cast(pa.large_binary()).to_pylist() if text is not None)
            sizes = [0 if text is None else len(text) for text in column.cast(pa.large_binary()).to_pylist()]
            assert spool.sizes(stands).tolist() == sizes
            assert spool.restored(stands).equals(column)
            assert spool.restored(stands.slice(2)).equals(column.slice(2))


@given(sizes=st.lists(st.integers(0, 50), max_size=40))
def test_a_block_has_its_bytes_at_most_or_one_row(sizes: list[int]) -> None:
    blocks = list(cut(np.array(sizes, np.int64), most=30))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(len(sizes)))
    for block in blocks:
        assert sum(sizes[block]) <= 30 or block.stop - block.start == 1
        assert block.stop == len(sizes) or sum(sizes[block]) + sizes[block.stop] > 30


def test_a_row_that_is_too_large_is_named_with_its_size() -> None:
    check_row_sizes(np.array([ROW_BYTES]), 0)
    with pytest.raises(RowTooLargeError, match=r"^Row 7 has 67,108,865 bytes, more than the 67,108,864 bytes"):
        check_row_sizes(np.array([1, ROW_BYTES + 1]), 6)


@given(texts=TEXTS, samples=st.lists(st.one_of(st.none(), st.lists(st.text(max_size=400), max_size=9)), max_size=20))
def test_answers_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], samples: list[list[str] | None]
) -> None:
    rows = max(len(texts), len(samples))
    columns = {
        "row": list(range(rows)),
        "status": ["success"] * rows,
        "output": texts + [None] * (rows - len(texts)),
        "outputs": samples + [None] * (rows - len(samples)),
    }
    arrays = [pa.array(columns.get(field.name, [None] * rows), field.type) for field in RESULT]
    batch = pa.record_batch(arrays, schema=RESULT)
    with Spool(tmp_path_factory.mktemp("spool") / "texts") as spool:
        pieces = [piece for some in shortened(batch, spool).to_batches() for piece in restored(some, spool, RESULT)]
    assert pa.Table.from_batches(pieces, RESULT).equals(pa.Table.from_batches([batch], RESULT))
