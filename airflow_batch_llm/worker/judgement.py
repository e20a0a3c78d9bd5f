"""What an engine's HTTP answer means for its row, endpoint by endpoint.

An answer counts only with a finish reason (or status) that says so: vLLM also breaks off with HTTP 200 and half a text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import msgspec

from airflow_batch_llm.models import ANSWERED, CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES
from airflow_batch_llm.worker_wire import ResultLine

MESSAGE_LENGTH: Final = 500
"""How much of an engine's error text goes into a table's row; some repeat the whole prompt."""

_OF_THE_ROW: Final = frozenset({400, 413, 422})
"""The statuses by which an engine says that the row itself is wrong."""


class NotTheRowsFaultError(Exception):
    """The engine did not judge the row: it died, was overloaded, or the connection broke. The row may be sent again."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Tokens in the words of the completions APIs and of the responses API."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    status: str
    usage: _Usage | None = None


class _Problem(msgspec.Struct):
    message: str
    code: Any = None
    param: str | None = None


class _ProblemBody(msgspec.Struct):
    error: _Problem


@dataclass(frozen=True)
class _Answer:
    """What the endpoints' answers have in common."""

    finish_reason: str | None
    usage: _Usage
    text: str | None = None


def judge(
    row: int,
    status: int,
    content: bytes,
    choices: frozenset[str] | None = None,
    *,
    endpoint: str = CHAT_COMPLETIONS,
    whole: bool = False,
) -> ResultLine:
    """The result that an answer is, its text alone or (``whole``) as it came.

    Raises :class:`NotTheRowsFaultError` where the answer says nothing of the row.
    """
    if status in _OF_THE_ROW or (whole and status == HTTPStatus.NOT_FOUND and _names_what_is_missing(content)):
        return _refused(row, status, content, whole=whole)
    if status != HTTPStatus.OK:
        raise NotTheRowsFaultError(f"HTTP {status}: {content[:MESSAGE_LENGTH].decode(errors='replace')}")
    try:
        content.decode()
        answer = _READERS[endpoint](content)
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise NotTheRowsFaultError(f"The engine's answer is none of {endpoint}: {error}") from error
    result = _counted(row, answer)
    if whole:
        result.status_code = status
        result.response = one_line(content)
        return result
    return _with_text(result, answer.text, choices)


def engine_error(row: int, error: Exception, *, whole: bool) -> ResultLine:
    """The result of a row that a living engine has failed on again and again."""
    result = ResultLine(row, "error", code="engine_error", error=str(error))
    if whole:
        _add_problem(result, HTTPStatus.INTERNAL_SERVER_ERROR, str(error), "server_error", "engine_error")
    return result


def one_line(content: bytes) -> msgspec.Raw:
    """A JSON text as it came, unless line feeds stand between its values: lines are what separates results."""
    return msgspec.Raw(content if b"\n" not in content and b"\r" not in content else _compact(content))


def _compact(content: bytes) -> bytes:
    return msgspec.json.format(content, indent=-1)


def _chat(content: bytes) -> _Answer:
    completion = msgspec.json.decode(content, type=_Completion)
    message = completion.choices[0].message
    return _of_choices(completion, message.content if message else None)


def _completion(content: bytes) -> _Answer:
    return _of_choices(msgspec.json.decode(content, type=_Completion), None)


def _of_choices(completion: _Completion, text: str | None) -> _Answer:
    for choice in completion.choices:
        if choice.finish_reason not in ANSWERED:
            raise NotTheRowsFaultError(f"The engine broke off with finish reason {choice.finish_reason!r}")
    return _Answer(completion.choices[0].finish_reason, completion.usage or _Usage(), text)


def _embeddings(content: bytes) -> _Answer:
    embeddings = msgspec.json.decode(content, type=_Embeddings)
    embeddings.data[0]  # an answer without a vector is none
    return _Answer(None, embeddings.usage or _Usage())


def _response(content: bytes) -> _Answer:
    response = msgspec.json.decode(content, type=_Response)
    if response.status not in ("completed", "incomplete"):
        raise NotTheRowsFaultError(f"The engine broke off with status {response.status!r}")
    return _Answer(response.status, response.usage or _Usage())


_READERS: Final[dict[str, Callable[[bytes], _Answer]]] = {
    CHAT_COMPLETIONS: _chat,
    COMPLETIONS: _completion,
    EMBEDDINGS: _embeddings,
    RESPONSES: _response,
}


def _counted(row: int, answer: _Answer) -> ResultLine:
    usage = answer.usage
    of_prompt = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    of_answer = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return ResultLine(
        row,
        "success",
        finish_reason=answer.finish_reason,
        prompt_tokens=usage.prompt_tokens or usage.input_tokens or 0,
        cached_tokens=of_prompt.cached_tokens,
        completion_tokens=usage.completion_tokens or usage.output_tokens or 0,
        reasoning_tokens=of_answer.reasoning_tokens,
    )


def _with_text(result: ResultLine, text: str | None, choices: frozenset[str] | None) -> ResultLine:
    result.output = text
    if text is None:
        result.status = "invalid_output"
        result.code = "no_text"
        result.error = f"The engine gave no text (finish reason {result.finish_reason})."
    elif choices is not None and text not in choices:
        result.status = "invalid_output"
        result.code = "not_a_choice"
        result.error = f"The answer is none of the {len(choices)} choices (finish reason {result.finish_reason})."
    return result


def _problem(content: bytes) -> _Problem | None:
    try:
        return msgspec.json.decode(content, type=_ProblemBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _names_what_is_missing(content: bytes) -> bool:
    """Whether a 404 is about something that the request names. Its model is the engine's own: one without it is ill."""
    problem = _problem(content)
    return problem is not None and problem.param != "model" and problem.code != "model_not_found"


def _refused(row: int, status: int, content: bytes, *, whole: bool) -> ResultLine:
    known = _problem(content)
    problem = known or _Problem(content.decode(errors="replace"))
    too_long = problem.param in ("input_text", "input_tokens") or "maximum context length" in problem.message
    code = "context_length_exceeded" if too_long else "engine_refused"
    result = ResultLine(row, "error", code=code, error=problem.message[:MESSAGE_LENGTH])
    if whole and known is not None:
        result.status_code, result.response = status, one_line(content)
    elif whole:
        _add_problem(result, status, problem.message[:MESSAGE_LENGTH], "invalid_request_error", None)
    return result


def _add_problem(result: ResultLine, status: int, message: str, kind: str, code: str | None) -> None:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    result.status_code, result.response = status, msgspec.Raw(msgspec.json.encode(body))
