"""What a storage can do. Keys are relative, ``/``-separated names that this package makes itself.

Every error of a storage or of a tree of tables is an :class:`OSError`, and which one says what to do next::

    OSError
    ├── FileNotFoundError     nothing is there, for certain
    ├── FileExistsError       something stands where it must not be replaced
    ├── PermissionError       it may not be read or written: somebody has to allow it
    ├── UnusableError         what is there is no file that can be read, for certain: somebody has to mend it
    ├── ChangedError          what is there is another version than the one that was looked at
    └── StorageTroubleError   nothing is known: try again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol


class UnusableError(OSError):
    """What stands there is neither a file nor a folder, or a link that leads to nothing or back to where it began."""


class ChangedError(OSError):
    """A file or an object is not the version any more that was looked at."""


class StorageTroubleError(OSError):
    """A storage gave no answer, or one that says nothing about what is there. Another try may go better."""


@dataclass(frozen=True)
class StoredObject:
    """A key as a storage's own listing has it. ``stored_at`` is in seconds since 1970, on the storage's clock."""

    key: str
    size: int
    stored_at: float


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
        """The keys below a folder, in the order of their characters."""

    def scan(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """What :meth:`list` gives behind the key ``after``, with size and age. Streams: page by page, or by folder."""

    def delete(self, key: str) -> None:
        """Forgets ``key``, if it is there."""

    def delete_many(self, keys: Sequence[str]) -> None:
        """Forgets the keys that are there. If it raises, some may be left, and a second call goes on."""

    def delete_prefix(self, prefix: str) -> None:
        """Forgets every key below a folder."""

    def drop_unfinished(self, *, before: float, ours: Callable[[str], bool]) -> int:
        """Removes what writes have left that never ended, and gives how many those were.

        Of those alone that were begun (locally: last written to) before a time, and whose key ``ours`` knows.
        """


def checked_key(key: str) -> str:
    """``key`` in its one spelling. Raises :class:`ValueError` for one that would lead out of a storage."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{key!r} is not a key of this storage.")
    return "" if path == PurePosixPath() else str(path)
