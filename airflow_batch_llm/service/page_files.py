"""The files of the pages at the service itself: our own, and Preact's, which come with the package reactpy."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

from airflow_batch_llm.pages.files import PageFile, page_files

PREACT: Final = ("preact.js", "preact-dom.js", "index-bz53xswt.js")
"""React's API, ``createRoot``, and what these two import. The last name is that of one release of reactpy."""
PREACT_HINT: Final = (
    "The pages need Preact, which the Python package reactpy brings: `pip install reactpy==2.0.0b13` where the service "
    "runs (or the extra airflow-batch-llm[service], which names it), and start the service again."
)
_HEADERS: Final = {
    # Asked for again each time, and then mostly answered with 304: the pages are never older than the service.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

own_files = functools.cache(page_files)


def preact_files() -> dict[str, PageFile]:
    """By name; empty where reactpy, or this release of it, is not installed. It is found without being imported."""
    found = importlib.util.find_spec("reactpy")
    for place in (found and found.submodule_search_locations) or ():
        paths = {name: Path(place) / "static" / name for name in PREACT}
        if all(path.is_file() for path in paths.values()):
            return {name: PageFile.read(path) for name, path in paths.items()}
    return {}


def answer_with(files: Mapping[str, PageFile], name: str, asked: Headers) -> Response | None:
    """The file of that name, or 304 where the caller has it; None where there is none."""
    file = files.get(name)
    if file is None:
        return None
    headers = {**_HEADERS, "ETag": file.etag}
    if file.is_known(asked):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.media_type})
