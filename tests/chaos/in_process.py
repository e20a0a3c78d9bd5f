"""The real service without a socket: each request runs in the caller's thread, so that a seed decides everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.worker.service_link import ServiceLink
from tests.chaos.seams import Process, Seams, WorkerCrash

URL = "http://service"

_Result = TypeVar("_Result")


async def inline(function: Callable[..., Any], *arguments: Any, **_options: Any) -> Any:
    """In the place of ``anyio.to_thread.run_sync``."""
    return function(*arguments)


@dataclass
class Loops:
    """An event loop for each depth: while a request stands still, others run to their end."""

    _loops: list[asyncio.AbstractEventLoop] = field(default_factory=list)
    _depth: int = 0

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        if self._depth == len(self._loops):
            self._loops.append(asyncio.new_event_loop())
        loop, outer = self._loops[self._depth], asyncio._get_running_loop()
        self._depth += 1
        asyncio._set_running_loop(None)
        try:
            return loop.run_until_complete(coroutine)
        finally:
            asyncio._set_running_loop(outer)
            self._depth -= 1

    def close(self) -> None:
        for loop in self._loops:
            loop.close()


@dataclass
class _Sent:
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    async def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
        else:
            self.body += message.get("body", b"")
            self.complete = not message.get("more_body", False)


@dataclass
class InProcess(httpx.BaseTransport):
    """Calls the application. A service that dies in a call gives no answer; one that stumbles is a defect."""

    app: FastAPI
    process: Process
    seams: Seams
    loops: Loops
    stumbled: Callable[[str], None]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.method} {request.url.path}"
        sent = _Sent()
        try:
            with self.seams.running(self.process):
                self.loops.run(self._call(request, request.read(), sent))
        except WorkerCrash as error:
            raise httpx.ReadError(f"{what}: the service died") from error
        except BaseExceptionGroup as group:
            if group.subgroup(WorkerCrash) is None:
                raise
            raise httpx.ReadError(f"{what}: the service died") from group
        except Exception as error:
            if sent.status != 500:
                raise httpx.ReadError(f"{what}: the answer was cut off") from error
            self.stumbled(f"{what}: HTTP 500 for {type(error).__name__}: {error}")
        if not sent.complete:
            raise httpx.ReadError(f"{what}: the answer was cut off")
        return httpx.Response(sent.status, headers=sent.headers, content=sent.body)

    async def _call(self, request: httpx.Request, content: bytes, sent: _Sent) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": "http",
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "server": ("service", 80),
            "client": ("client", 1),
            "root_path": "",
        }
        messages = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        await self.app(scope, receive, sent.take)


@dataclass
class Remembering(httpx.BaseTransport):
    """Keeps the last requests of a client, so that one of them can arrive again."""

    inner: httpx.BaseTransport
    most: int = 12
    sent: list[httpx.Request] = field(default_factory=list)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.sent = [*self.sent, request][-self.most :]
        return self.inner.handle_request(request)

    def again(self, request: httpx.Request) -> httpx.Response:
        return self.inner.handle_request(request)


def link_to(transport: httpx.BaseTransport, token: str) -> ServiceLink:
    """A worker's real link, over this transport."""
    link = ServiceLink.__new__(ServiceLink)
    link.url = URL
    link._http = _http(transport, token)
    return link


def client_of(transport: httpx.BaseTransport, token: str) -> BatchClient:
    """The real client, over this transport."""
    client = BatchClient.__new__(BatchClient)
    client.url = URL
    client._http = _http(transport, token)
    return client


def _http(transport: httpx.BaseTransport, token: str) -> httpx.Client:
    return httpx.Client(
        transport=transport, base_url=URL, headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )
