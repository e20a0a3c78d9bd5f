"""A server of somebody else with OpenAI's batch API, in the shapes that such servers have been seen to give."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

Served = TypeVar("Served", bound="ForeignServer")


class ForeignServer:
    """Batches in memory over real HTTP. A test sets their fields, and ``refusals`` by (method, first path segment)."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        """Newest first."""
        self.bodies: list[tuple[str, bytes]] = []
        """What was posted where."""
        self.looks = 0
        """How often a batch was looked at."""
        self.created_with = 201
        self.shape: dict[str, Any] = {}
        """Fields of every batch made from now on; absent otherwise."""
        self.refusals: dict[tuple[str, str], tuple[int, dict[str, str], bytes]] = {}
        self.url = ""

    def batch(self, batch_id: str) -> dict[str, Any] | None:
        return next((batch for batch in self.batches if batch["id"] == batch_id), None)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        split = urlsplit(path)
        segments = split.path.strip("/").split("/")
        if refusal := self.refusals.get((method, segments[1] if len(segments) > 1 else segments[0])):
            return refusal
        if method == "POST":
            self.bodies.append((split.path, body))
        match [method, *segments]:
            case ["POST", "v1", "batches"]:
                return self.created_with, {}, _json(self._made(json.loads(body)))
            case ["GET", "v1", "batches"]:
                return 200, {}, _json(self._page(parse_qs(split.query)))
            case ["GET", "v1", "batches", batch_id] if batch := self.batch(batch_id):
                self.looks += 1
                return 200, {}, _json(batch)
            case ["POST", "v1", "batches", batch_id, "cancel"] if batch := self.batch(batch_id):
                batch["status"] = "canceling"
                return 200, {}, _json(batch)
        return 404, {}, _json({"detail": "Not Found"})

    def _made(self, create: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        made = {"id": f"0b5e-{number}", "status": "queued", "created_at": 4_000_000_000 + number, **create}
        self.batches.insert(0, {**made, **self.shape})
        return self.batches[0]

    def _page(self, query: dict[str, list[str]]) -> dict[str, Any]:
        limit = int(query.get("limit", ["20"])[0])
        ids = [batch["id"] for batch in self.batches]
        first = ids.index(query["after"][0]) + 1 if "after" in query else 0
        return {"data": self.batches[first : first + limit], "has_more": len(ids) > first + limit}


@contextmanager
def running_foreign_server() -> Iterator[ForeignServer]:
    with serving(ForeignServer()) as foreign:
        yield foreign


@contextmanager
def serving(foreign: Served) -> Iterator[Served]:
    """``foreign`` behind a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = foreign.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _respond  # noqa: N815 (the base class's names)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        foreign.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield foreign
        server.shutdown()
        thread.join()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
