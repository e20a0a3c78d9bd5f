"""A directory as storage."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from airflow_batch_llm.storage.base import StoredObject, checked_key

_UNFINISHED: Final = re.compile(r"\.(.+)\.[0-9a-f]{32}")
"""The name of a file that is being written: see ``_new``."""


class LocalStorage:
    """Keeps each key as a file. Writes go to a file beside it that is then renamed, so nobody reads half of one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._root.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, content: bytes) -> None:
        with self._new(key) as path:
            path.write_bytes(content)

    def put_file(self, key: str, path: Path) -> None:
        with self._new(key) as new:
            shutil.move(path, new)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        with self._new(key) as path, path.open("wb") as stream:
            yield stream

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with self._path(key).open("rb") as stream:
            yield stream

    def list(self, prefix: str) -> Iterator[str]:
        for found in self.scan(prefix):
            yield found.key

    def scan(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        """As in the protocol. Holds the names of one folder at a time, and of those above it."""
        folder = checked_key(prefix)
        yield from self._below(f"{folder}/" if folder else "", after)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    def drop_unfinished(self, *, before: float, ours: Callable[[str], bool]) -> int:
        """As in the protocol; folders that have been empty for as long go too."""
        dropped = 0
        for folder, _, names in os.walk(self._root, topdown=False):
            for name in names:
                unfinished = _UNFINISHED.fullmatch(name)
                path = Path(folder, name)
                if unfinished and _is_older(path, before):
                    key = path.with_name(unfinished[1]).relative_to(self._root).as_posix()
                    if ours(key):
                        path.unlink(missing_ok=True)
                        dropped += 1
            if Path(folder) != self._root and _is_older(Path(folder), before):
                with contextlib.suppress(OSError):  # there is something in it
                    Path(folder).rmdir()
        return dropped

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _below(self, prefix: str, after: str) -> Iterator[StoredObject]:
        for name in _names(self._root / prefix):
            key = prefix + name
            if name.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._below(key, after)
            elif key > after:
                with contextlib.suppress(FileNotFoundError):  # it went while the others were looked at
                    found = (self._root / key).stat()
                    yield StoredObject(key, found.st_size, found.st_mtime)

    @contextmanager
    def _new(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            yield new
            with new.open("rb") as stream:
                os.fsync(stream.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    """The names in a folder, those of folders with a ``/``: so their order is also that of everything below them."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                f"{entry.name}/" if entry.is_dir() else entry.name for entry in found if not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_older(path: Path, time: float) -> bool:
    try:
        return path.stat().st_mtime < time
    except FileNotFoundError:
        return False
