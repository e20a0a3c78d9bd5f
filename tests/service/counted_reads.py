"""Counts the bytes that are read of a service's own storage and of its users' tables, in directories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.storage.local_tree import LocalTree


class CountedReads:
    """What was read since the start, or since it was last taken."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self.opened: list[str] = []
        for kind in (LocalStorage, LocalTree):
            patch.setattr(kind, "open", self._counting(kind.open))

    def taken(self) -> int:
        taken, self.bytes = self.bytes, 0
        self.opened = []
        return taken

    def _counting(self, opens: Any) -> Any:
        @contextmanager
        def counted(place: Any, which: Any) -> Iterator[Any]:
            self.opened.append(getattr(which, "uri", which))
            with opens(place, which) as stream:
                yield _Counting(stream, self)

        return counted


class _Counting:
    def __init__(self, stream: Any, counts: CountedReads) -> None:
        self._stream = stream
        self._counts = counts

    def read(self, *size: int) -> bytes:
        content: bytes = self._stream.read(*size)
        self._counts.bytes += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        count: int = self._stream.readinto(buffer)
        self._counts.bytes += count
        return count

    def readline(self, *size: int) -> bytes:
        line: bytes = self._stream.readline(*size)
        self._counts.bytes += len(line)
        return line

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
