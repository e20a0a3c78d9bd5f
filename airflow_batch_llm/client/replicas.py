"""Several addresses of one service: where one does not answer, the next one is asked.

A call is made again elsewhere only if that can do no harm: it cannot have reached the first address, or it takes
effect once however often it is made (the request's extension ``repeatable``; whatever is no POST is so by itself).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Final

import httpx

log = logging.getLogger(__name__)

REPEATABLE: Final = {"repeatable": True}
"""The extensions of a POST that may be made again."""
LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)
"""httpx's own, for a client that asks for no others."""
_NEVER_ARRIVED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_AWAY: Final = frozenset({502, 503, 504})
"""What a service says that cannot use its store, and a proxy in front of one that is not there."""


def base_urls(urls: str) -> list[str]:
    """The addresses in a text with commas between them, without the ``/v1`` that people write for OpenAI's clients."""
    parts = [part.strip().rstrip("/").removesuffix("/v1").rstrip("/") for part in urls.split(",")]
    return [part for part in parts if part] or [""]


def sync_transport(urls: Sequence[str]) -> httpx.BaseTransport | None:
    """For a client whose base is the first address; None (httpx's own) where there is no other."""
    return _Transport(urls) if len(urls) > 1 else None


def async_transport(urls: Sequence[str], *, limits: httpx.Limits = LIMITS) -> httpx.AsyncBaseTransport | None:
    return _AsyncTransport(urls, limits) if len(urls) > 1 else None


class _Addresses:
    """Which address is asked: one drawn by chance, so that many clients spread, until it does not answer."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._current = random.randrange(len(urls))  # noqa: S311 (no secret)

    def in_turn(self) -> list[int]:
        """The addresses in the order in which one call may ask them."""
        return [(self._current + step) % len(self._urls) for step in range(len(self._urls))]

    def at(self, request: httpx.Request, number: int) -> httpx.Request:
        """The request as it goes to that address; one to somewhere else (a redirect) stays as it is."""
        base, url = self._urls[0], self._urls[number]
        if (request.url.scheme, request.url.netloc) != (base.scheme, base.netloc):
            return request
        path = url.raw_path.rstrip(b"/") + request.url.raw_path.removeprefix(base.raw_path.rstrip(b"/"))
        there = request.url.copy_with(scheme=url.scheme, host=url.host, port=url.port, raw_path=path)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
        headers = [(b"Host", there.netloc), *headers]
        return httpx.Request(
            request.method, there, headers=headers, stream=request.stream, extensions=request.extensions
        )

    def leave(self, number: int, why: object) -> None:
        """The next address is asked from now on, by this call and the ones after it."""
        self._current = (number + 1) % len(self._urls)
        log.warning("%s does not answer (%s); asking %s", self._urls[number], why, self._urls[self._current])


class _Transport(httpx.BaseTransport):
    def __init__(self, urls: Sequence[str]) -> None:
        self._addresses = _Addresses(urls)
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        *others, last = self._addresses.in_turn()
        for number in others:
            try:
                response = self._inner.handle_request(self._addresses.at(request, number))
            except httpx.TransportError as error:
                if not _may_go_on(request, error):
                    raise
                self._addresses.leave(number, type(error).__name__)
                continue
            if not _away(request, response):
                return response
            response.close()
            self._addresses.leave(number, f"HTTP {response.status_code}")
        return self._inner.handle_request(self._addresses.at(request, last))

    def close(self) -> None:
        self._inner.close()


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, urls: Sequence[str], limits: httpx.Limits) -> None:
        self._addresses = _Addresses(urls)
        self._inner = httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        *others, last = self._addresses.in_turn()
        for number in others:
            try:
                response = await self._inner.handle_async_request(self._addresses.at(request, number))
            except httpx.TransportError as error:
                if not _may_go_on(request, error):
                    raise
                self._addresses.leave(number, type(error).__name__)
                continue
            if not _away(request, response):
                return response
            await response.aclose()
            self._addresses.leave(number, f"HTTP {response.status_code}")
        return await self._inner.handle_async_request(self._addresses.at(request, last))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _may_go_on(request: httpx.Request, error: httpx.TransportError) -> bool:
    return isinstance(error, _NEVER_ARRIVED) or _repeatable(request)


def _away(request: httpx.Request, response: httpx.Response) -> bool:
    return response.status_code in _AWAY and _repeatable(request)


def _repeatable(request: httpx.Request) -> bool:
    said: Any = request.extensions.get("repeatable")
    return request.method != "POST" if said is None else bool(said)
