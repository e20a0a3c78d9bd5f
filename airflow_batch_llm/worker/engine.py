"""The engine over HTTP: one row in, one judgement out.

The same class serves a ``vllm serve`` that the worker started (on a unix socket) and any OpenAI-compatible server.
Requests are not streamed; how many are in flight is the runner's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec
import orjson

from airflow_batch_llm.models import ANSWERED
from airflow_batch_llm.worker_wire import ResultLine

# Shorter than the 5 s after which uvicorn closes an idle connection: one that it has just closed breaks the next call.
KEEPALIVE_SECONDS: Final = 3.0
PROBE_SECONDS: Final = 5.0
MESSAGE_LENGTH: Final = 500
"""How much of an engine's error text goes into a row; some repeat the whole prompt."""

_OF_THE_ROW: Final = frozenset({400, 413, 422})
"""The statuses by which an engine says that the row itself is wrong."""


class NotTheRowsFaultError(Exception):
    """The engine did not judge the row: it died, was overloaded, or the connection broke. The row may be sent again."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _CachedTokens | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


class _Problem(msgspec.Struct):
    message: str
    code: Any = None
    param: str | None = None


class _ProblemBody(msgspec.Struct):
    error: _Problem


@dataclass
class Engine:
    """An OpenAI-compatible server, reached at ``base_url`` or at a unix socket."""

    model: str
    base_url: str = "http://engine"
    socket: Path | None = None
    timeout_seconds: float = 3600.0

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

    async def ask(
        self, endpoint: str, row: int, body: dict[str, Any], *, request_id: str, choices: frozenset[str] | None
    ) -> ResultLine:
        """Sends one row and judges the answer. Raises :class:`NotTheRowsFaultError` where there is no judgement."""
        try:
            async with self._http.post(
                f"{self.base_url}{endpoint}",
                data=orjson.dumps(body | {"model": self.model}),
                headers={"Content-Type": "application/json", "X-Request-Id": request_id},
            ) as response:
                return judge(row, response.status, await response.read(), choices)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotTheRowsFaultError(f"{type(error).__name__}: {error}") from error


def judge(row: int, status: int, content: bytes, choices: frozenset[str] | None) -> ResultLine:
    """What an HTTP answer means for its row: an answer only with a finish reason that says so."""
    if status in _OF_THE_ROW:
        return _refused(row, content)
    if status != HTTPStatus.OK:
        raise NotTheRowsFaultError(f"HTTP {status}: {content[:MESSAGE_LENGTH].decode(errors='replace')}")
    try:
        completion = msgspec.json.decode(content, type=_Completion)
        choice = completion.choices[0]
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError) as error:
        raise NotTheRowsFaultError(f"The engine's answer is no chat completion: {error}") from error
    if choice.finish_reason not in ANSWERED:
        raise NotTheRowsFaultError(f"The engine broke off with finish reason {choice.finish_reason!r}")
    return _answered(row, choice, completion.usage, choices)


def _answered(row: int, choice: _Choice, usage: _Usage, choices: frozenset[str] | None) -> ResultLine:
    result = ResultLine(
        row,
        "success",
        output=choice.message.content,
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None,
        completion_tokens=usage.completion_tokens or 0,
    )
    if result.output is None:
        result.status = "invalid_output"
        result.code = "no_text"
        result.error = f"The engine gave no text (finish reason {choice.finish_reason})."
    elif choices is not None and result.output not in choices:
        result.status = "invalid_output"
        result.code = "not_a_choice"
        result.error = f"The answer is none of the {len(choices)} choices (finish reason {choice.finish_reason})."
    return result


def _refused(row: int, content: bytes) -> ResultLine:
    try:
        problem = msgspec.json.decode(content, type=_ProblemBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem(content.decode(errors="replace"))
    too_long = problem.param in ("input_text", "input_tokens") or "maximum context length" in problem.message
    code = "context_length_exceeded" if too_long else "engine_refused"
    return ResultLine(row, "error", code=code, error=problem.message[:MESSAGE_LENGTH])
