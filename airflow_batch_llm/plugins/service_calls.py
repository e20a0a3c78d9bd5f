"""Calls of a batch service for the pages, and what becomes of its refusals on the way.

Nothing of a call is logged but how it failed: bodies and answers hold prompts and rows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Any, Final, TypeVar

import httpx
from fastapi import Request
from pydantic import BaseModel, ValidationError

from airflow_batch_llm.client.batch_client import ANSWER_SECONDS, TIMEOUT, headers
from airflow_batch_llm.client.replicas import REPEATABLE, async_transport, base_urls
from airflow_batch_llm.errors import UnauthorizedError
from airflow_batch_llm.plugins.page_connections import PageService
from airflow_batch_llm.plugins.refusals import Refusal

LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Everybody who looks at a page has a call waiting."""
_PASSED_ON: Final = frozenset({400, 404, 409, 413, 416, 422, 429, 503})
"""What the service says of the call itself, or of its own moment."""
_TOO_OLD: Final = frozenset({404, 405})
_UNKNOWN_CALL: Final = frozenset({"not_found", "method_not_allowed"})
"""What a service says of a call that it does not have; of a batch that it does not have it says another word."""

_Answer = TypeVar("_Answer")
_Model = TypeVar("_Model", bound=BaseModel)


class ServiceCalls:
    """The connections to services. One object lives as long as its event loop."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def ask(
        self,
        service: PageService,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        wait: float = 0.0,
        repeatable: bool = False,
    ) -> httpx.Response:
        """A success's answer, read whole. Raises :class:`Refusal` for everything else.

        :param wait: seconds that the service may take longer than usual.
        :param repeatable: whether a POST may be made again at another address of the service.
        """
        request = {"json": json, "params": params, "extensions": dict(REPEATABLE) if repeatable else {}}
        response = await self._sent(service, method, path, request, wait)
        with _translated(service):
            await response.aread()
            await response.aclose()
        return _checked(service, response)

    async def open(self, service: PageService, path: str, params: Mapping[str, str]) -> httpx.Response:
        """A success's answer that is not read yet; whoever gets it closes it. Raises as :meth:`ask`."""
        request = {"params": params, "headers": {"Accept-Encoding": "identity"}}
        response = await self._sent(service, "GET", path, request, 0.0)
        if not response.is_success:
            with _translated(service):
                await response.aread()
                await response.aclose()
        return _checked(service, response)

    async def _sent(
        self, service: PageService, method: str, path: str, request: dict[str, Any], wait: float
    ) -> httpx.Response:
        with _translated(service):
            client = await self._client(service.address.url)
            own = headers(service.address.token)
            made = client.build_request(
                method,
                path,
                timeout=httpx.Timeout(ANSWER_SECONDS + wait, connect=TIMEOUT.connect),
                **{**request, "headers": {**request.get("headers", {}), **own}},
            )
            return await client.send(made, stream=True)

    async def _client(self, urls: str) -> httpx.AsyncClient:
        """One for each address that a connection has had: tokens go with each call, so they may change."""
        if urls not in self._clients:
            # Making one reads certificates from the disk.
            made = await asyncio.to_thread(_new_client, urls)
            self._clients.setdefault(urls, made)
        return self._clients[urls]


def _new_client(urls: str) -> httpx.AsyncClient:
    several = base_urls(urls)
    return httpx.AsyncClient(base_url=several[0], limits=LIMITS, transport=async_transport(several, limits=LIMITS))


async def while_looked_at(request: Request, asking: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The answer, for as long as the browser waits for it: where that hangs up, the call ends with it."""
    asked = asyncio.ensure_future(asking)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        raise Refusal(499, "hung_up", "The browser hung up.")
    finally:
        for task in (asked, gone):
            task.cancel()
        await asyncio.gather(asked, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """What comes, as it comes; closes the response at the end, however it comes."""
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    finally:
        await response.aclose()


def parsed(kind: type[_Model], response: httpx.Response, service: PageService) -> _Model:
    """The object of a success. Raises :class:`Refusal` where another server, or version, gave something else."""
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _too_old(service, response) from error


def _checked(service: PageService, response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    said = _said(response)
    status = response.status_code
    if status in (401, 403):
        raise Refusal(
            502,
            "token_refused",
            f"{service} does not let Airflow's token do that{_quoted(said)} The token is the connection's password.",
        )
    if status in _TOO_OLD and (said is None or said["code"] in _UNKNOWN_CALL):
        raise _too_old(service, response)
    if said is not None and status in _PASSED_ON:
        after = response.headers.get("Retry-After")
        raise Refusal(
            status, said["code"], said["message"], headers={"Retry-After": after} if after is not None else None
        )
    raise Refusal(502, "service_unreachable", f"{service} answered HTTP {status}{_quoted(said)} Try again.")


def _too_old(service: PageService, response: httpx.Response) -> Refusal:
    return Refusal(
        502,
        "service_too_old",
        f"{service} does not answer {response.request.method} {response.request.url.path} as the pages need it. It is "
        "of another version, or another server with OpenAI's batch API, or runs with --no-extensions; the pages need "
        "`batch-llm serve` of the version that Airflow has.",
    )


def _said(response: httpx.Response) -> dict[str, str] | None:
    """The error of a batch service's own answer."""
    try:
        error = response.json()["error"]
        return {"code": str(error["code"]), "message": str(error["message"])}
    except (ValueError, KeyError, TypeError):
        return None


def _quoted(said: Mapping[str, str] | None) -> str:
    return f": {said['message']}" if said else "."


@contextlib.contextmanager
def _translated(service: PageService) -> Iterator[None]:
    try:
        yield
    except UnauthorizedError as error:
        raise Refusal(502, "token_refused", f"{service}: {error}") from error
    except httpx.TimeoutException as error:
        raise Refusal(504, "service_unreachable", f"{service} does not answer in time. Try again.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refusal(
            502,
            "service_unreachable",
            f"{service} cannot be reached ({type(error).__name__}). Is `batch-llm serve` running there, and may "
            "Airflow's api-server reach it?",
        ) from error
