"""The calls of the pages: what is asked below ``/ui/api/v1`` is asked of ``/v1``, as whoever is logged in.

The promise is that the cookie opens nothing but that: only ``/v1``, only for the pages themselves. An Authorization
header counts for nothing here, and the cookie nothing elsewhere.
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_batch_llm.errors import RefusedError
from airflow_batch_llm.service.page_session import check_own_page, token_of
from airflow_batch_llm.service.problems import problem

CALLS: Final = "/ui/api/"
_TAKEN: Final = f"{CALLS}v1/"
_DOWNLOAD: Final = "/download"
"""A link: the browser itself stores what comes, however large it is."""
_OWN: Final = {b"cookie", b"authorization"}
_SEALED: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}
"""Rows and prompts are kept by no browser, and what somebody uploaded is no page of ours, whatever it looks like."""


class PageCalls:
    """Stands before the gate, which sees a call of ``/v1`` with a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(CALLS):
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SEALED)
            await send(message)

        answering = _refusal(scope)
        if answering is None:
            await self._app(_as_call(scope), receive, sealed)
        else:
            await answering(scope, receive, sealed)


def _refusal(scope: Scope) -> JSONResponse | None:
    connection = HTTPConnection(scope)
    closing = {"Connection": "close"}  # its body is not read
    if not scope["path"].startswith(_TAKEN):
        return problem(404, f"{scope['method']} {scope['path']}: Not Found.", "not_found", headers=closing)
    try:
        check_own_page(connection, scope["method"], link=scope["path"].endswith(_DOWNLOAD))
    except RefusedError as error:
        return problem(error.status, error.message, error.code, error.param, closing)
    if token_of(connection) is None:
        return problem(401, "Nobody is logged in. Nothing was done.", "not_logged_in", headers=closing)
    return None


def _as_call(scope: Scope) -> Scope:
    """The same request as a program would make it."""
    path = scope["path"].removeprefix(CALLS.rstrip("/"))
    token = token_of(HTTPConnection(scope)) or ""
    kept = [(name, value) for name, value in scope["headers"] if name not in _OWN]
    headers = [*kept, (b"authorization", f"Bearer {token}".encode("latin-1", "replace"))]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
