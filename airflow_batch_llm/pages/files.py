"""The files of the pages, as a browser gets them: from Airflow, and from the service itself.

A name from a request is looked up among those of the files that are there, and becomes no path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "static"
KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is given out at all."""


@dataclass(frozen=True)
class PageFile:
    """A file in memory; all of them together are some hundred kilobytes."""

    content: bytes
    media_type: str
    etag: str
    """Of the content: a browser that asks again after an upgrade gets what is new, and else nothing."""

    @classmethod
    def read(cls, path: Path) -> PageFile:
        content = path.read_bytes()
        return cls(content, KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def is_known(self, headers: Mapping[str, str]) -> bool:
        """Whether a browser that sends these headers has it already."""
        given = headers.get("if-none-match", "").split(",")
        return self.etag in (tag.strip().removeprefix("W/") for tag in given)


def page_files(folder: Path = FOLDER) -> dict[str, PageFile]:
    """All files, by their name below the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix in KINDS and path.is_file())
    return {path.relative_to(folder).as_posix(): PageFile.read(path) for path in paths}
