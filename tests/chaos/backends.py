"""Store, storage and trees with a seam before and after each effect. What they do is done by the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlalchemy import Connection, Engine

from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.tree import Entry, Tree, Wanted
from airflow_batch_llm.store.database import Database
from tests.chaos.seams import Seams

_ENGINES: Final[dict[str, Engine]] = {}
"""Kept between schedules, for what takes longest is to compile the statements anew."""


class ChaosDatabase(Database):
    """The real store. Its tables are there already, and after each commit somebody looks at it."""

    def __init__(self, url: str, *, clock: Callable[[], float], seams: Seams, committed: Callable[[], None]) -> None:
        super().__init__(url, clock=clock)
        self._engine = _ENGINES.setdefault(url, self._engine)
        self._seams = seams
        self._saw_commit = committed

    def migrate(self) -> None:
        pass

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        self._seams.touch("store", "before", "a transaction")
        with super().writing() as connection:
            self._seams.transactions += 1
            try:
                yield connection
                self._seams.touch("store", "in", "a transaction")
            finally:
                self._seams.transactions -= 1
        self._saw_commit()
        self._seams.touch("store", "after", "a transaction")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        self._seams.touch("store", "before", "a look")
        with super().reading() as connection:
            yield connection


class ChaosStorage:
    """Bytes by key."""

    def __init__(self, real: Storage, seams: Seams) -> None:
        self._real = real
        self._seams = seams

    def put(self, key: str, content: bytes) -> None:
        with self._seams.around("storage", f"put {key}"):
            self._real.put(key, content)

    def put_file(self, key: str, path: Path) -> None:
        with self._seams.around("storage", f"put file {key}"):
            self._real.put_file(key, path)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        with self._seams.around("storage", f"create {key}"), self._real.create(key) as stream:
            yield stream
            self._seams.touch("storage", "in", f"create {key}")

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        self._seams.touch("storage", "before", f"open {key}")
        with self._real.open(key) as stream:
            yield stream

    def list(self, prefix: str) -> Iterator[str]:
        self._seams.touch("storage", "before", f"list {prefix}")
        return iter(list(self._real.list(prefix)))

    def delete(self, key: str) -> None:
        with self._seams.around("storage", f"delete {key}"):
            self._real.delete(key)

    def delete_prefix(self, prefix: str) -> None:
        with self._seams.around("storage", f"delete all of {prefix}"):
            self._real.delete_prefix(prefix)


class ChaosTree:
    """Users' tables."""

    def __init__(self, real: Tree, seams: Seams) -> None:
        self._real = real
        self._seams = seams

    def stat(self, uri: str) -> Entry | None:
        return self._real.stat(uri)

    def is_folder(self, uri: str) -> bool:
        return self._real.is_folder(uri)

    def list(self, uri: str, wanted: Wanted | None = None) -> Iterator[Entry]:
        return self._real.list(uri, wanted)

    @contextmanager
    def open(self, entry: Entry) -> Iterator[BinaryIO]:
        self._seams.touch("tree", "before", f"open {Path(entry.uri).name}")
        with self._real.open(entry) as stream:
            yield stream

    def publish(self, path: Path, uri: str, *, over: Entry | None) -> None:
        self._seams.touch("tree", "before", f"publish {Path(uri).name}")
        self._real.publish(path, uri, over=over)
        self._seams.touch("tree", "after", f"publish {Path(uri).name}")

    def delete(self, uri: str) -> None:
        with self._seams.around("tree", f"delete {Path(uri).name}"):
            self._real.delete(uri)

    def scratch(self, uri: str, *, owner: str | None = None, attempt: int = 1) -> Any:
        return self._real.scratch(uri, owner=owner, attempt=attempt)
