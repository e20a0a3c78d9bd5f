"""The service's HTTP API as Python calls, once blocking and once for an event loop."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from airflow_batch_llm.errors import (
    ConflictError,
    InvalidRequestError,
    NoAnswerError,
    NotFoundError,
    RefusedError,
    UnauthorizedError,
)
from airflow_batch_llm.wire import Batch, BatchCancel, BatchCreate, BatchList, FileObject, ModelList, ProblemBody

DEFAULT_URL: Final = "http://127.0.0.1:8765"
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)

_REFUSALS: Final[dict[int, type[RefusedError]]] = {401: UnauthorizedError, 404: NotFoundError, 409: ConflictError}

_Answer = TypeVar("_Answer", bound=BaseModel)


def checked(response: httpx.Response, url: str) -> httpx.Response:
    """The response itself, if it is a success; the matching error otherwise."""
    if response.is_success:
        return response
    try:
        problem = ProblemBody.model_validate_json(response.content).error
    except ValidationError as error:
        raise NoAnswerError(
            f"{response.request.method} {response.request.url} was answered HTTP {response.status_code}, and not in "
            f"the way of a batch service. Is {url} the address of `batch-llm serve`?"
        ) from error
    if response.is_server_error:
        raise NoAnswerError(f"The batch service at {url} has trouble (HTTP {response.status_code}): {problem.message}")
    kind = _REFUSALS.get(response.status_code, InvalidRequestError)
    raise kind(problem.message, code=problem.code or "invalid_request", param=problem.param)


def _parsed(kind: type[_Answer], response: httpx.Response, url: str) -> _Answer:
    try:
        return kind.model_validate_json(checked(response, url).content)
    except ValidationError as error:
        raise NoAnswerError(
            f"{response.request.method} {response.request.url} did not give a {kind.__name__.lower()}. "
            f"Is {url} the address of `batch-llm serve`?"
        ) from error


def _unreachable(url: str, error: Exception) -> NoAnswerError:
    return NoAnswerError(
        f"The batch service at {url} cannot be reached ({type(error).__name__}: {error}). "
        "Is `batch-llm serve` running there, and is the address right?"
    )


@contextmanager
def translated(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error


class BatchClient:
    """Blocking client of one service.

    Raises :class:`~airflow_batch_llm.errors.RefusedError` for what the service refuses and
    :class:`~airflow_batch_llm.errors.NoAnswerError` where nothing is known. Never repeats a call by itself.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        with translated(self.url):
            self._http = httpx.Client(base_url=self.url, headers=_headers(token), timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, create: BatchCreate) -> Batch:
        """Stores a batch and gives it as it stands; with a known ``key``, the batch that lives under it."""
        return self._call(Batch, "POST", "/v1/batches", json=create.model_dump(mode="json", exclude_none=True))

    def get(self, batch_id: str) -> Batch:
        return self._call(Batch, "GET", f"/v1/batches/{batch_id}")

    def list(self, *, after: str | None = None, limit: int = 20) -> BatchList:
        """One page of batches, newest first; ``after`` is the id of the last one seen, ``limit`` 1 to 100."""
        return self._call(BatchList, "GET", "/v1/batches", params=_present(after=after, limit=limit))

    def find(self, key: str) -> Batch | None:
        """The newest generation of the batch under a key; None where no batch was ever submitted under it."""
        page = self._call(BatchList, "GET", "/v1/batches", params={"key": key, "limit": 1})
        return page.data[0] if page.data else None

    def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        """Asks for the batch's end; what was done is kept. With a ``holder`` it counts only while that holds it."""
        body = BatchCancel(holder=holder).model_dump(exclude_none=True)
        return self._call(Batch, "POST", f"/v1/batches/{batch_id}/cancel", json=body)

    def models(self) -> ModelList:
        """The models that living workers serve. Needs a valid token, so it also tests a connection."""
        return self._call(ModelList, "GET", "/v1/models")

    def results(self, batch_id: str, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a finished batch's target as dictionaries, in source order, streamed."""
        path = f"/v1/batches/{batch_id}/results"
        with translated(self.url), self._http.stream("GET", path, params=_present(limit=limit)) as response:
            if not response.is_success:
                response.read()
            checked(response, self.url)
            for line in _lines(response.iter_bytes()):
                yield json.loads(line)

    def upload(self, path: Path, *, purpose: str = "batch") -> FileObject:
        """Stores a file of requests, streamed from disk."""
        with path.open("rb") as stream:
            return self._call(
                FileObject, "POST", "/v1/files", files={"file": (path.name, stream)}, data={"purpose": purpose}
            )

    def _call(self, kind: type[_Answer], method: str, path: str, **request: Any) -> _Answer:
        with translated(self.url):
            response = self._http.request(method, path, **request)
        return _parsed(kind, response, self.url)


class AsyncBatchClient:
    """What a trigger needs of :class:`BatchClient`, for an event loop."""

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        with translated(self.url):
            self._http = httpx.AsyncClient(base_url=self.url, headers=_headers(token), timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, batch_id: str) -> Batch:
        async with self._translated():
            response = await self._http.get(f"/v1/batches/{batch_id}")
        return _parsed(Batch, response, self.url)

    async def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        body = BatchCancel(holder=holder).model_dump(exclude_none=True)
        async with self._translated():
            response = await self._http.post(f"/v1/batches/{batch_id}/cancel", json=body)
        return _parsed(Batch, response, self.url)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        with translated(self.url):
            yield


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut at line feeds only: a JSON text may hold the other characters that end a line in Unicode."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
