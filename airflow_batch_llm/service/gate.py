"""What a request passes before any of its body is read: its token is looked at, and its body's size is held.

The promise is the order: who has no token of the service's cannot make it read or keep a byte of a body, but for the
few bytes of a login.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_batch_llm.errors import UnauthorizedError
from airflow_batch_llm.service.access import ACCESS, access_of
from airflow_batch_llm.service.page_routes import is_page
from airflow_batch_llm.service.problems import problem
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import Limits
from airflow_batch_llm.store.database import StoreTroubleError

OPEN: Final = frozenset({"/healthz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})
"""What needs no token: whether the service lives, and what its calls look like."""
UPLOADS: Final = "/v1/files"
"""Its form is read as it comes and has a limit of its own."""
SMALL_BYTES: Final = 1 << 16
"""A body up to here may still arrive after a refusal; for a longer one the connection is closed."""


def _state(scope: Scope) -> ServiceState:
    state: ServiceState = scope["app"].state.service
    return state


class Gate:
    """Lets only those requests through that carry a token, with bodies of a size that the service takes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = await self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        limit = _limit(scope, _state(scope).settings.limits)
        if limit is None:
            await self._app(scope, receive, send)
        elif _declared(headers) > limit.bytes:
            await limit.refusal(f"{_declared(headers):,} bytes", headers)(scope, receive, send)
        else:
            await self._limited(scope, receive, send, limit)

    async def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        try:
            access = await run_in_threadpool(access_of, _state(scope).tokens, headers.get("authorization"))
        except UnauthorizedError as error:
            closing = _closing(headers) | {"WWW-Authenticate": "Bearer"}
            return problem(error.status, error.message, error.code, headers=closing)
        except StoreTroubleError as error:
            return problem(503, f"{error} Try again.", "store_trouble", headers=_closing(headers))
        scope.setdefault("state", {})[ACCESS] = access
        return None

    async def _limited(self, scope: Scope, receive: Receive, send: Send, limit: _Limit) -> None:
        """Counts what comes: a body that is sent in chunks does not say how long it is."""
        taken, answered = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit.bytes:
                raise HTTPException(413)  # ends the route, whose own answer is left out below
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            if taken <= limit.bytes or answered:
                answered = True
                await send(message)

        await self._app(scope, counted, sent)
        if taken > limit.bytes and not answered:
            await limit.refusal("more", Headers(scope=scope))(scope, receive, send)


@dataclass(frozen=True)
class _Limit:
    name: str
    bytes: int

    def refusal(self, has: str, headers: Headers) -> JSONResponse:
        return problem(
            413,
            f"The body has {has}, and this service takes at most {self.bytes:,} bytes here (its limit {self.name}). "
            "Nothing was done.",
            "body_too_large",
            headers=_closing(headers),
        )


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN or (_state(scope).settings.extensions and is_page(scope["path"]))


def _limit(scope: Scope, limits: Limits) -> _Limit | None:
    if scope["method"] == "POST" and scope["path"] == UPLOADS:
        return None
    if scope["method"] == "PUT":
        return _Limit("part_bytes", limits.part_bytes)
    return _Limit("body_bytes", limits.body_bytes)


def _declared(headers: Headers) -> int:
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _closing(headers: Headers) -> dict[str, Any]:
    """Closes the connection to a client that would go on sending what nobody reads."""
    long = "transfer-encoding" in headers or _declared(headers) > SMALL_BYTES
    return {"Connection": "close"} if long else {}
