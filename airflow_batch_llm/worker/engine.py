"""The engine over HTTP: one row in, one judgement out.

The same class serves a ``vllm serve`` that the worker started (on a unix socket) and any OpenAI-compatible server.
Requests are not streamed; how many are in flight is the runner's business.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.described import described_endpoints
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError, judge
from airflow_batch_llm.worker.stall import tokens_counted
from airflow_batch_llm.worker_wire import Claim, ResultLine, RowLine

# Shorter than the 5 s after which uvicorn closes an idle connection: one that it has just closed breaks the next call.
KEEPALIVE_SECONDS: Final = 3.0
PROBE_SECONDS: Final = 5.0
DESCRIBE_SECONDS: Final = 60.0
"""FastAPI makes its description when it is first asked for, on a busy machine for seconds."""


@dataclass
class Engine:
    """An OpenAI-compatible server, reached at ``base_url`` or at a unix socket."""

    model: str
    base_url: str = "http://engine"
    socket: Path | None = None
    timeout_seconds: float = 3600.0

    @property
    def shared_server(self) -> str | None:
        """Names the server that others may ask as well; None for the worker's own, on a socket that is its own too."""
        return hashlib.sha256(self.base_url.encode()).hexdigest() if self.socket is None else None

    async def __aenter__(self) -> Self:
        # The runner bounds what is in flight; a bound here as well would only hide it.
        connector: aiohttp.BaseConnector
        if self.socket is not None:
            connector = aiohttp.UnixConnector(str(self.socket), limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        self._http = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=self.timeout_seconds)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.close()

    async def healthy(self) -> bool:
        """Whether the server answers and serves the model."""
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._http.get(f"{self.base_url}/v1/models", timeout=timeout) as response:
                models = orjson.loads(await response.read())["data"]
                return any(model["id"] == self.model for model in models)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
            return False

    async def tokens(self) -> float | None:
        """The tokens that the server has read and written so far; None where it does not count them.

        Raises :class:`NotTheRowsFaultError` where it does not answer.
        """
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._http.get(f"{self.base_url}/metrics", timeout=timeout) as response:
                return tokens_counted(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotTheRowsFaultError(f"{type(error).__name__}: {error}") from error

    async def described(self) -> dict[str, list[str] | None]:
        """The endpoints that the server has, each with the fields that it knows (None where it does not say).

        Raises :class:`NotTheRowsFaultError` where the server gives no answer, which is not to be taken for a short one.
        """
        timeout = aiohttp.ClientTimeout(total=DESCRIBE_SECONDS)
        try:
            async with self._http.get(f"{self.base_url}/openapi.json", timeout=timeout) as response:
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotTheRowsFaultError(
                f"The engine does not describe itself: {type(error).__name__}: {error}"
            ) from error
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NotTheRowsFaultError(f"The engine does not describe itself: HTTP {status}")
        return described_endpoints(_json(content) if status == HTTPStatus.OK else None)

    async def ask(self, line: RowLine, claim: Claim, check: AnswerCheck) -> ResultLine:
        """Sends one row and judges the answer. Raises :class:`NotTheRowsFaultError` where there is no judgement."""
        try:
            async with self._http.post(
                f"{self.base_url}{claim.endpoint}",
                data=self._body(line, claim),
                headers={"Content-Type": "application/json", "X-Request-Id": f"{claim.batch_id}-{line.row}"},
            ) as response:
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotTheRowsFaultError(f"{type(error).__name__}: {error}") from error
        return judge(line.row, status, content, check)

    def _body(self, line: RowLine, claim: Claim) -> bytes:
        """A request's body as it was submitted; a table's row behind what all of its rows share."""
        if claim.whole:
            return bytes(line.body)
        shared = orjson.dumps(claim.parameters | {"model": self.model})
        return shared[:-1] + b"," + bytes(line.body)[1:]


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except ValueError:
        return None
