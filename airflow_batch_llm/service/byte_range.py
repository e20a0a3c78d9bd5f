"""The header ``Range`` of a download (RFC 9110, section 14): one range of bytes, or else the whole."""

from __future__ import annotations

import re
from typing import Final

_ONE_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


class UnsatisfiableRangeError(Exception):
    """The range begins where the bytes have ended."""


def byte_range(header: str | None, size: int) -> range | None:
    """The bytes to send; None is all of them, as it also is where the header has another form or several ranges."""
    found = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if found is None or found[0].endswith("=-"):
        return None
    first, last = found[1], found[2]
    if not first:
        return _suffix(int(last), size)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRangeError
    return range(int(first), min(int(last) + 1, size) if last else size)


def _suffix(length: int, size: int) -> range | None:
    """The last bytes; of an empty file that is the whole, for which no range could be written down."""
    if length == 0:
        raise UnsatisfiableRangeError
    return range(max(0, size - length), size) if size else None
