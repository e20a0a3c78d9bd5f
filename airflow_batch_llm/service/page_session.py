"""Who is logged in to the pages, and whether a request comes from them and not from somebody else's page.

The session is a cookie that holds the token itself, so that nothing has to be kept of it and a token that is revoked
opens nothing from the next call on. Scripts cannot read it, and a browser sends it to the pages alone.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection

from airflow_batch_llm.errors import InsufficientScopeError, InvalidRequestError

COOKIE: Final = "batch_llm_session"
PAGE_HEADER: Final = "X-Batch-LLM-Page"
"""In each call of the pages. A form cannot send it, and the script of another origin only after asking, in vain."""

_FLAGS: Final = "HttpOnly; SameSite=Strict"
"""No Path: the cookie is then for the folder of the call that sets it, ``…/ui``, as the browser sees that. So it is
right under whatever path a proxy serves the pages, also where the proxy says nothing of that path."""


class ForeignPageError(InsufficientScopeError):
    """The request does not come from the pages of this service (HTTP 403)."""


def token_of(connection: HTTPConnection) -> str | None:
    """The token of whoever is logged in."""
    return unquote(connection.cookies.get(COOKIE, "")) or None


def open_session(headers: MutableHeaders, token: str, *, secure: bool) -> None:
    """Lets an answer of a call right below ``/ui/`` log its browser in, until that is closed."""
    headers.append("set-cookie", f"{COOKIE}={quote(token, safe='')}; {_FLAGS}{'; Secure' if secure else ''}")


def close_session(headers: MutableHeaders) -> None:
    headers.append("set-cookie", f"{COOKIE}=; Max-Age=0; {_FLAGS}")


def came_by_tls(connection: HTTPConnection) -> bool:
    """Whether the browser speaks TLS, be it with a proxy."""
    return "https" in (connection.url.scheme, _first(connection, "x-forwarded-proto").lower())


def check_own_page(connection: HTTPConnection, method: str, *, link: bool = False) -> None:
    """Raises :class:`ForeignPageError` unless the pages sent this, and :class:`InvalidRequestError` for a body that a
    form of another page could send, too. With ``link`` it may be a link of the pages that was followed."""
    if link and method == "GET" and connection.headers.get("sec-fetch-site") in (None, "same-origin"):
        return  # a browser sends no header with that; the cookie comes from no other site's page
    if PAGE_HEADER not in connection.headers:
        raise ForeignPageError(
            f"What is below /ui/api is for the pages alone, which send the header {PAGE_HEADER}. Nothing was done. "
            "Programs call the same below /v1, with `Authorization: Bearer …`.",
            code="page_header_missing",
        )
    if method not in ("GET", "HEAD"):
        check_same_origin(connection)
        _check_json(connection)


def check_same_origin(connection: HTTPConnection) -> None:
    """By what the browser itself says: ``Sec-Fetch-Site`` where it trusts the connection (TLS, or its own machine), and
    ``Origin`` else. Raises :class:`ForeignPageError`."""
    site = connection.headers.get("sec-fetch-site")
    origin = connection.headers.get("origin")
    if site == "same-origin" or (site is None and origin and urlsplit(origin).netloc in _hosts(connection)):
        return
    told = f"Sec-Fetch-Site is {site}" if site else f"Origin is {origin}" if origin else "neither is there"
    raise ForeignPageError(
        "The pages' calls must come from the pages themselves, as the browser says by Sec-Fetch-Site or Origin, but "
        f"{told}, and the service is asked as {' or '.join(sorted(_hosts(connection))) or '(no Host)'}. Nothing was "
        "done. A proxy without TLS before the service has to hand on Host, or set X-Forwarded-Host.",
        code="foreign_page",
    )


def _check_json(connection: HTTPConnection) -> None:
    headers = connection.headers
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    sent = headers.get("content-type", "")
    if not empty and sent.partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequestError(
            f"The body has the Content-Type {sent or '(none)'}, but it must be application/json. Nothing was done.",
            code="invalid_content_type",
            param="Content-Type",
        )


def _hosts(connection: HTTPConnection) -> set[str]:
    """What the service is called in this request."""
    named = (connection.headers.get("host", ""), _first(connection, "x-forwarded-host"))
    return {host for host in named if host}


def _first(connection: HTTPConnection, header: str) -> str:
    """What the outermost of several proxies says."""
    return connection.headers.get(header, "").partition(",")[0].strip()
