"""How much is held in memory at a time: some thousand rows, or fewer where those are long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

BLOCK_BYTES: Final = 16 << 20
"""What the rows that are worked on together may have in all; one row alone may have more."""
ROW_BYTES: Final = 64 << 20
"""The longest row that is read: a large image in base64 fits, and one row can be held in memory."""


class RowTooLargeError(Exception):
    """A row has more than :data:`ROW_BYTES`."""

    def __init__(self, row: str, size: int | None = None) -> None:
        """``row`` begins the sentence; the size, where the row was not read to its end, is not known."""
        has = "more" if size is None else f"{size:,} bytes, more"
        super().__init__(f"{row} has {has} than the {ROW_BYTES:,} bytes that a row may have.")


def check_row_sizes(sizes: np.ndarray[Any, Any], first: int) -> None:
    """Raises :class:`RowTooLargeError` for the first row that is too large, of rows from number ``first`` on."""
    if len(sizes) and sizes.max() > ROW_BYTES:
        row = int(np.argmax(sizes > ROW_BYTES))
        raise RowTooLargeError(f"Row {first + row}", int(sizes[row]))


def cut(sizes: np.ndarray[Any, Any], most: int = BLOCK_BYTES) -> Iterator[slice]:
    """Consecutive rows that have at most ``most`` bytes together, by the bytes of each; at least one row a time."""
    ends = np.cumsum(sizes)
    at = 0
    while at < len(sizes):
        before = ends[at - 1] if at else 0
        end = max(at + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(at, end)
        at = end
