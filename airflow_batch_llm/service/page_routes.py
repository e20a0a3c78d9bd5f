"""The pages without Airflow: ``/ui/`` and what it is made of, and logging in with a token.

All addresses in them are relative, so they work under whatever path a proxy serves the service.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from airflow_batch_llm.errors import InsufficientScopeError, InvalidRequestError, UnauthorizedError
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service.access import State
from airflow_batch_llm.service.page_calls import CALLS
from airflow_batch_llm.service.page_files import PREACT_HINT, answer_with, own_files, preact_files
from airflow_batch_llm.service.page_session import (
    came_by_tls,
    check_own_page,
    close_session,
    open_session,
    token_of,
)
from airflow_batch_llm.service.problems import problem

router: Final = APIRouter(include_in_schema=False)

MOST_LOGIN_BYTES: Final = 4_096
"""Of the one body that is read without a token: a token, and room for how JSON may write it."""

_POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>LLM batches</title>
<link rel="icon" href="static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="static/pages.css">
<link rel="stylesheet" href="static/standalone.css">
{head}</head>
<body>
{body}
</body>
</html>
"""
_SCRIPT: Final = '<script type="module" src="static/standalone.js"></script>\n'
_ROOT: Final = '<div id="root" data-session="{session}"></div>\n<noscript>These pages need JavaScript.</noscript>'
_MISSING: Final = (
    '<main class="blm blm-standalone"><div class="blm-login"><h1>LLM batches</h1>'
    '<p class="blm-error" role="alert">{hint}</p></div></main>'
)


def is_page(path: str) -> bool:
    """Whether this needs no token: the pages hold nothing of anybody's until their calls are answered."""
    return path in ("/", "/ui") or (path.startswith("/ui/") and not path.startswith(CALLS))


@router.get("/")
def root() -> Response:
    return RedirectResponse("ui/")


@router.get("/ui")
def folder() -> Response:
    return RedirectResponse("ui/")


@router.get("/ui/")
def page(request: Request) -> Response:
    """Says whether a browser has a session, so that a script which cannot see the cookie need not try a call."""
    if not preact_files():
        content = _PAGE.format(head="", body=_MISSING.format(hint=PREACT_HINT))
        return HTMLResponse(content, status_code=503, headers=_HEADERS)
    session = "none" if token_of(request) is None else "open"
    return HTMLResponse(_PAGE.format(head=_SCRIPT, body=_ROOT.format(session=session)), headers=_HEADERS)


@router.get("/ui/static/preact/{name}")
def preact(request: Request, name: str) -> Response:
    files = preact_files()
    if not files:
        return problem(503, PREACT_HINT, "preact_missing")
    return _found(answer_with(files, name, request.headers))


@router.get("/ui/static/{name:path}")
def static(request: Request, name: str) -> Response:
    return _found(answer_with(own_files(), name, request.headers))


@router.post("/ui/login")
async def login(request: Request, state: State) -> Response:
    """Takes ``{"token": …}`` and opens a session with it. The token needs the scope ``read``."""
    check_own_page(request, request.method)
    content = await _short_body(request)
    if content is None:
        return _too_long()
    token = _token(content)
    access = await run_in_threadpool(state.tokens.access_of, token)
    if access is None:
        raise UnauthorizedError(
            "The token is not one of this service's, or it was revoked. Nobody was logged in. The first one stands in "
            "the file `token` of the service's home; whoever runs the service makes others with `batch-llm token "
            "create`.",
            code="invalid_api_key",
        )
    if not access.allows(Scope.READ):
        raise InsufficientScopeError(
            "The pages need a token with the scope read, which this one does not have. Nobody was logged in. Whoever "
            "runs the service makes tokens with `batch-llm token create`.",
            code="insufficient_scope",
        )
    answer = Response(status_code=204, headers={"Cache-Control": "no-store"})
    open_session(answer.headers, token, secure=came_by_tls(request))
    return answer


@router.post("/ui/logout")
def logout(request: Request) -> Response:
    """Has the browser forget the session. The token goes on being one."""
    check_own_page(request, request.method)
    answer = Response(status_code=204, headers={"Cache-Control": "no-store"})
    close_session(answer.headers)
    return answer


async def _short_body(request: Request) -> bytes | None:
    """None for one that is too long, of which no more is read."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_LOGIN_BYTES:
            return None
    return content


def _too_long() -> Response:
    return problem(
        413,
        f"The body of a login has more than {MOST_LOGIN_BYTES:,} bytes, so it is no token. Nobody was logged in.",
        "body_too_large",
        headers={"Connection": "close"},
    )


def _token(content: bytes) -> str:
    """Says nothing of what was sent instead: it may be a secret all the same."""
    body: Any = None
    with contextlib.suppress(msgspec.DecodeError):
        body = msgspec.json.decode(content)
    token = body.get("token") if isinstance(body, dict) else None
    if not isinstance(token, str) or not token.strip():
        raise InvalidRequestError(
            'The body of a login has to be JSON of the form {"token": "…"}. Nobody was logged in.',
            code="invalid_request",
            param="token",
        )
    return token.strip()


def _found(answer: Response | None) -> Response:
    if answer is None:
        raise HTTPException(404)
    return answer
