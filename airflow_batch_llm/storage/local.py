"""A directory as storage."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from airflow_batch_llm.storage.base import checked_key


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
        files = (path for path in self._path(prefix).rglob("*") if path.is_file() and not path.name.startswith("."))
        yield from sorted(path.relative_to(self._root).as_posix() for path in files)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

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
