"""What a storage can do. Keys are relative, ``/``-separated names that this package makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol


class Storage(Protocol):
    """Bytes by key. A key appears whole or not at all, and is never changed afterwards."""

    def put(self, key: str, content: bytes) -> None:
        """Stores ``content`` under ``key``."""

    def put_file(self, key: str, path: Path) -> None:
        """Stores the file's content under ``key``; the file may be moved away."""

    def create(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A stream to write what ``key`` is to hold; it appears when the block ends, and not if that raises."""

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """The bytes under ``key`` as a stream that can seek. Raises :class:`FileNotFoundError`."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys below a folder, in order."""

    def delete(self, key: str) -> None:
        """Forgets ``key``, if it is there."""

    def delete_prefix(self, prefix: str) -> None:
        """Forgets every key below a folder."""


class StorageTroubleError(OSError):
    """Storage cannot be reached or does not answer as it should. It may pass."""


class ChangedError(OSError):
    """A file is not the version any more that was looked at."""
