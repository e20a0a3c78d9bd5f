"""Answers whose texts are kept beside the database that sorts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import pyarrow as pa

from airflow_batch_llm.service.spool import Spool

_TEXTS: Final = ("output", "outputs", "embedding", "error")
"""The columns that may have long texts."""
_SAMPLES: Final = "outputs"
"""Several samples of a row are sorted as one text: together they may be long where each of them is short."""


def sorted_schema(schema: pa.Schema) -> pa.Schema:
    """How answers of ``schema`` are sorted."""
    return schema.set(schema.get_field_index(_SAMPLES), pa.field(_SAMPLES, pa.string()))


def shortened(batch: pa.RecordBatch, spool: Spool) -> pa.Table:
    """The answers of :func:`sorted_schema`, their long texts in the spool."""
    batch = _replaced(batch, _SAMPLES, _as_texts(batch.column(_SAMPLES)))
    for name in _long_names(batch):
        batch = _replaced(batch, name, spool.shortened(batch.column(name)))
    return pa.Table.from_batches([batch])


def restored(batch: pa.RecordBatch, spool: Spool, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The answers as they were, of ``schema``, a block at a time."""
    for piece in spool.pieces(batch.cast(sorted_schema(schema)), _long_names(batch)):
        yield _replaced(piece, _SAMPLES, _as_lists(piece.column(_SAMPLES)))


def _long_names(batch: pa.RecordBatch) -> list[str]:
    return [name for name in _TEXTS if name in batch.schema.names]


def _replaced(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), pa.field(name, column.type), column)


def _as_texts(lists: pa.Array) -> pa.Array:
    if lists.null_count == len(lists):
        return pa.nulls(len(lists), pa.string())
    return pa.array(None if some is None else msgspec.json.encode(some).decode() for some in lists.to_pylist())


def _as_lists(texts: pa.Array) -> pa.Array:
    kind = pa.list_(pa.string())
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), kind)
    return pa.array((None if text is None else msgspec.json.decode(text) for text in texts.to_pylist()), kind)
