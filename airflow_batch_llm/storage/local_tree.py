from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from airflow_batch_llm.storage.tree import Entry


class LocalTree:
    def _entry(self, p: Path) -> Entry:
        st = p.stat()
        return Entry(str(p), st.st_size, str(st.st_mtime_ns))

    def stat(self, uri: str) -> Entry | None:
        p = Path(uri)
        try:
            if p.is_dir():
                return None
            return self._entry(p)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_folder(self, uri: str) -> bool:
        return Path(uri).is_dir()

    def list(self, uri: str) -> Iterator[Entry]:
        base = Path(uri)
        for p in sorted(base.rglob("*")):
            if p.is_file() and not any(x[0] in "._" for x in p.relative_to(base).parts):
                yield self._entry(p)

    @contextmanager
    def open(self, entry: Entry) -> Iterator[BinaryIO]:
        with open(entry.uri, "rb") as f:
            yield f

    @contextmanager
    def scratch(self, uri: str) -> Iterator[Path]:
        t = Path(uri)
        t.parent.mkdir(parents=True, exist_ok=True)
        p = t.with_name(f".{t.name}.{uuid.uuid4().hex}")
        try:
            yield p
        finally:
            p.unlink(missing_ok=True)

    def publish(self, path: Path, uri: str, *, replace: bool) -> None:
        with path.open("rb") as s:
            os.fsync(s.fileno())
        if replace:
            path.replace(uri)
        else:
            os.link(path, uri)

    def delete(self, uri: str) -> None:
        Path(uri).unlink(missing_ok=True)
