"""Where users' tables lie: read at one version, written whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Entry:
    """One file at one version."""

    uri: str
    size: int
    version: str


class Tree(Protocol):
    def stat(self, uri: str) -> Entry | None: ...
    def is_folder(self, uri: str) -> bool: ...
    def list(self, uri: str) -> Iterator[Entry]: ...
    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]: ...
    def publish(self, path: Path, uri: str, *, replace: bool) -> None: ...
    def delete(self, uri: str) -> None: ...
    def scratch(self, uri: str) -> AbstractContextManager[Path]: ...
