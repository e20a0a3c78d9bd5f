"""The records held against a listing of the storage: two streams in the order of their keys, walked side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from airflow_batch_llm.service.needed_bytes import NeededBytes
from airflow_batch_llm.storage.base import Storage, StoredObject
from airflow_batch_llm.store.expected import Expected, ExpectedObjects

PAGE: Final = 500
_Keyed = TypeVar("_Keyed", Expected, StoredObject)


@dataclass(frozen=True)
class Orphan:
    """An object that nothing needs."""

    found: StoredObject


@dataclass(frozen=True)
class Missing:
    """An object that a record names and that is not there; or, with ``found_size``, is of another size."""

    expected: Expected
    found_size: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Compares while a service runs: what looks wrong is looked at again before it is said."""

    storage: Storage
    records: ExpectedObjects
    needed: NeededBytes

    def differences(self, *, older_than: float) -> Iterator[Orphan | Missing]:
        """All that is wrong; of objects that nothing needs, those alone that were stored before a time."""
        waiting: list[StoredObject] = []
        for expected, found in side_by_side(self.records.all(), self.storage.scan()):
            if expected is None and found is not None and found.stored_at < older_than:
                waiting.append(found)
            elif expected is not None and (found is None or expected.size not in (None, found.size)):
                yield from self._missing(expected)
            if len(waiting) == PAGE:
                yield from self._orphans(waiting)
                waiting = []
        yield from self._orphans(waiting)

    def _orphans(self, found: list[StoredObject]) -> Iterator[Orphan]:
        unneeded = set(self.needed.unneeded([one.key for one in found]))
        return (Orphan(one) for one in found if one.key in unneeded)

    def _missing(self, expected: Expected) -> Iterator[Missing]:
        size = self._size(expected.key)
        is_there = size is not None and expected.size in (None, size)
        if not is_there and self.records.expects(expected):
            yield Missing(expected, size)

    def _size(self, key: str) -> int | None:
        try:
            with self.storage.open(key) as stream:
                return stream.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return None


def side_by_side(
    expected: Iterator[Expected], found: Iterator[StoredObject]
) -> Iterator[tuple[Expected | None, StoredObject | None]]:
    """Both streams by key: what has no counterpart stands alone.

    Raises :class:`ValueError` where one is not in order: then what is missing could not be told.
    """
    left, right = _ordered(expected), _ordered(found)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.key < other.key):
            yield one, None
            one = next(left, None)
        elif one is None or other.key < one.key:
            yield None, other
            other = next(right, None)
        else:
            yield one, other
            one, other = next(left, None), next(right, None)


def _ordered(stream: Iterator[_Keyed]) -> Iterator[_Keyed]:
    last = ""
    for one in stream:
        if one.key < last:
            raise ValueError(f"{one.key!r} comes after {last!r}: what is missing in storage cannot be told.")
        last = one.key
        yield one
