"""Long texts are kept in a file beside the database that sorts the rows which they are of.

A sort moves every byte of its rows, and needs memory for many of them at once: DuckDB cannot sort 100,000 texts of
4,096 characters in 384 MB. So it gets the place of a long text instead of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.service.blocks import cut

LONG: Final = 1_024
"""The most bytes of a text that is sorted with its row."""
_MARK: Final = b"\x01"
"""What a place begins with. A short text that begins with it is kept in the file too."""


class Spool:
    """A file of texts. Columns may be of any type of texts or bytes, with nulls."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def shortened(self, texts: pa.Array) -> pa.Array:
        """The column with places instead of its long texts."""
        mask = pc.fill_null(pc.or_(pc.greater(pc.binary_length(texts), LONG), pc.starts_with(texts, _MARK)), False)
        if not mask.true_count:
            return texts
        places = pa.array(self._add(texts.filter(mask).cast(pa.large_binary())), pa.binary())
        return pc.replace_with_mask(texts, mask, places.cast(texts.type))

    def restored(self, texts: pa.Array) -> pa.Array:
        """The column with its texts as they were."""
        mask = pc.fill_null(pc.starts_with(texts, _MARK), False)
        if not mask.true_count:
            return texts
        found = [self._read(*_place(text)) for text in _bytes(texts.filter(mask))]
        return pc.replace_with_mask(texts, mask, pa.array(found, pa.large_binary()).cast(texts.type))

    def pieces(self, batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The batch with the texts of the named columns as they were, a block at a time."""
        sizes = sum((self.sizes(batch.column(name)) for name in names), start=np.zeros(batch.num_rows, np.int64))
        columns = [batch.schema.get_field_index(name) for name in names]
        for some in cut(sizes):
            piece = batch.slice(some.start, some.stop - some.start)
            for at in columns:
                piece = piece.set_column(at, batch.schema.field(at), self.restored(piece.column(at)))
            yield piece

    @staticmethod
    def sizes(texts: pa.Array) -> np.ndarray[Any, Any]:
        """The bytes of each text as it was."""
        sizes: np.ndarray[Any, Any] = pc.fill_null(pc.binary_length(texts).cast(pa.int64()), 0).to_numpy().copy()
        mask = pc.fill_null(pc.starts_with(texts, _MARK), False)
        if mask.true_count:
            places = _bytes(texts.filter(mask))
            sizes[mask.to_numpy(zero_copy_only=False)] = [_place(place)[1] for place in places]
        return sizes

    def _add(self, texts: pa.Array) -> list[bytes]:
        """Appends them as they lie in memory, one behind the other."""
        _, offsets, content = texts.buffers()
        edges = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        start, end = int(edges[0]), int(edges[-1])
        self._file.seek(self._end)
        self._file.write(content.slice(start, end - start))
        at = self._end - start
        self._end += end - start
        return [
            b"%b%d:%d" % (_MARK, at + one, two - one)
            for one, two in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        ]

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)


def _bytes(texts: pa.Array) -> list[bytes]:
    return list(texts.cast(pa.large_binary()).to_pylist())


def _place(text: bytes) -> tuple[int, int]:
    offset, size = text[len(_MARK) :].split(b":")
    return int(offset), int(size)
