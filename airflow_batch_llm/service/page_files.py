"""The files of the pages: our own modules and styles, and Preact's, which come with the package reactpy.

What is served is looked up among the names of the files that are there; no name from a request becomes a path.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

FOLDER: Final = Path(__file__).resolve().parent.parent / "pages" / "static"
PREACT: Final = ("preact.js", "preact-dom.js", "index-bz53xswt.js")
"""React's API, ``createRoot``, and what these two import. The last name is that of one release of reactpy."""
PREACT_HINT: Final = (
    "The pages need Preact, which the Python package reactpy brings: `pip install reactpy==2.0.0b13` where the service "
    "runs (or the extra airflow-batch-llm[service], which names it), and start the service again."
)
KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is served at all."""

_HEADERS: Final = {
    # Asked for again each time, and then mostly answered with 304: the pages are never older than the service.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def own_files() -> dict[str, Path]:
    """By name, relative to the folder."""
    paths = (path for path in FOLDER.rglob("*") if path.suffix in KINDS and path.is_file())
    return {path.relative_to(FOLDER).as_posix(): path for path in paths}


def preact_files() -> dict[str, Path]:
    """By name; empty where reactpy, or this release of it, is not installed. It is found without being imported."""
    found = importlib.util.find_spec("reactpy")
    for place in (found and found.submodule_search_locations) or ():
        paths = {name: Path(place) / "static" / name for name in PREACT}
        if all(path.is_file() for path in paths.values()):
            return paths
    return {}


def answer_with(files: Mapping[str, Path], name: str, asked: Headers) -> Response | None:
    """The file of that name, or 304 where the caller has it; None where there is none."""
    path = files.get(name)
    if path is None:
        return None
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    if tag in (given.strip().removeprefix("W/") for given in asked.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "Content-Type": KINDS[path.suffix]})
