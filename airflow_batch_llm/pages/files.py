"""The files of the pages, as a browser gets them.

A name from a request is looked up among those of the files that are there, and becomes no path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
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
    content: bytes
    media_type: str
    etag: str
    """Of the content: a browser that asks again after an upgrade gets what is new, and else nothing."""


def page_files(folder: Path = FOLDER) -> dict[str, PageFile]:
    """All files by their name below the folder, in memory: they are some hundred kilobytes."""
    return dict(_read(folder))


def _read(folder: Path) -> Iterator[tuple[str, PageFile]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in KINDS and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            yield path.relative_to(folder).as_posix(), PageFile(content, KINDS[path.suffix], etag)
