"""Reading a Parquet file a block of rows at a time, whatever its writer has made of it.

A page of a kilobyte can say that a text of megabytes stands in every row. So texts are read as they are stored, each
once, and are written out for as many rows as a block holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.service.blocks import BLOCK_BYTES, check_row_sizes, cut

_TEXTS: Final = frozenset({pa.string(), pa.large_string(), pa.binary(), pa.large_binary()})


def parquet_blocks(stream: BinaryIO, schema: pa.Schema, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Blocks of at most ``rows`` rows, with these columns in the types that ``schema`` has for them.

    Raises :class:`RowTooLargeError` before a row that is too large is made.
    """
    texts = [name for name in columns if schema.field(name).type in _TEXTS]
    wanted = pa.schema([schema.field(name) for name in columns])
    start = 0
    with pq.ParquetFile(stream, read_dictionary=texts) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            some = _rows_of_a_block(parquet.metadata, group, columns, rows)
            for batch in parquet.iter_batches(some, row_groups=[group], columns=list(columns), use_threads=False):
                sizes = _sizes(batch)
                check_row_sizes(sizes, start)
                for block in cut(sizes):
                    yield _written_out(batch.slice(block.start, block.stop - block.start), wanted)
                start += batch.num_rows


def _rows_of_a_block(metadata: pq.FileMetaData, group: int, columns: Sequence[str], rows: int) -> int:
    """By what the group's columns take as they are stored."""
    of_group = metadata.row_group(group)
    chunks = (of_group.column(number) for number in range(of_group.num_columns))
    roots = tuple(f"{name}." for name in columns)
    size = sum(chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(roots))
    return int(max(1, min(rows, of_group.num_rows * BLOCK_BYTES // max(1, size))))


def _sizes(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    """The bytes of each row once it is written out; of nested values, their mean."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and column.type.value_type in _TEXTS:
            lengths = pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)
            sizes += pc.fill_null(lengths, 0).to_numpy()
        else:
            sizes += column.nbytes // max(1, batch.num_rows)
    return sizes


def _written_out(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column if column.type == wanted.type else column.cast(wanted.type)
        for column, wanted in zip(batch.columns, schema, strict=True)
    ]
    if not columns:
        return batch  # a batch made of no columns would have no rows
    return pa.record_batch(columns, schema=schema)
