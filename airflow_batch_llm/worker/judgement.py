"""What an engine's HTTP answer means for its row, endpoint by endpoint.

An answer counts only with a finish reason (or status) that says so: vLLM also breaks off with HTTP 200 and half a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from airflow_batch_llm.models import ANSWERED, CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES, TOKENIZE
from airflow_batch_llm.worker.answer_check import MESSAGE_LENGTH, AnswerCheck, Sample, fill_vector
from airflow_batch_llm.worker_wire import ResultLine

_OF_THE_ROW: Final = frozenset({400, 413, 422})
"""The statuses by which an engine says that the row itself is wrong."""


class NotTheRowsFaultError(Exception):
    """The engine did not judge the row: it died, was overloaded, or the connection broke. The row may be sent again."""


_NOTHING: Final = msgspec.Raw()

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**26)]
"""Of one row: several times what the largest context holds. An engine that says more is not counting."""


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    """Tokens in the words of the completions APIs and of the responses API."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: msgspec.Raw = _NOTHING


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


class _Tokenized(msgspec.Struct):
    count: _Tokens


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
    samples: Sequence[Sample] = ()
    vectors: Sequence[msgspec.Raw] = ()


def judge(row: int, status: int, content: bytes, check: AnswerCheck) -> ResultLine:
    """The result that an answer is, what a table needs of it or (``whole``) as it came.

    Raises :class:`NotTheRowsFaultError` where the answer says nothing of the row.
    """
    whole = check.whole
    if status in _OF_THE_ROW or (whole and status == HTTPStatus.NOT_FOUND and _names_what_is_missing(content)):
        return _refused(row, status, content, whole=whole)
    if status != HTTPStatus.OK:
        raise NotTheRowsFaultError(f"HTTP {status}: {content[:MESSAGE_LENGTH].decode(errors='replace')}")
    try:
        content.decode()
        answer = _READERS[check.endpoint](content)
        result = _counted(row, answer)
        if check.of_vectors:
            (vector,) = answer.vectors
            return fill_vector(result, vector)
    except (msgspec.DecodeError, IndexError, ValueError, RecursionError) as error:
        raise NotTheRowsFaultError(f"The engine's answer is none of {check.endpoint}: {error}") from error
    if check.endpoint == TOKENIZE:
        return result
    if not whole:
        return check.fill(result, answer.samples)
    result.status_code = status
    result.response = one_line(content)
    return result


def engine_error(row: int, message: str, *, whole: bool, code: str = "engine_error") -> ResultLine:
    """The result of a row that an engine has failed on again and again, living or dying."""
    result = ResultLine(row, "error", code=code, error=message)
    if whole:
        _add_problem(result, HTTPStatus.INTERNAL_SERVER_ERROR, message, "server_error", code)
    return result


def one_line(content: bytes) -> msgspec.Raw:
    """A JSON text as it came, unless line feeds stand between its values: lines are what separates results."""
    return msgspec.Raw(content if b"\n" not in content and b"\r" not in content else _compact(content))


def _compact(content: bytes) -> bytes:
    return msgspec.json.format(content, indent=-1)


def _completion(content: bytes) -> _Answer:
    completion = msgspec.json.decode(content, type=_Completion)
    for choice in completion.choices:
        if choice.finish_reason not in ANSWERED:
            raise NotTheRowsFaultError(f"The engine broke off with finish reason {choice.finish_reason!r}")
    samples = [_sample(choice) for choice in sorted(completion.choices, key=lambda choice: choice.index)]
    return _Answer(samples[0].finish_reason, completion.usage or _Usage(), samples)


def _sample(choice: _Choice) -> Sample:
    message = choice.message or _Message()
    thought = bool(message.reasoning or message.reasoning_content)
    ended = choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str)
    logprobs = None if choice.logprobs is _NOTHING else choice.logprobs
    return Sample(message.content, choice.finish_reason, ended, thought, logprobs)


def _embeddings(content: bytes) -> _Answer:
    embeddings = msgspec.json.decode(content, type=_Embeddings)
    embeddings.data[0]  # an answer without a vector is none
    vectors = [item.embedding for item in embeddings.data]
    return _Answer(None, embeddings.usage or _Usage(), vectors=vectors)


def _response(content: bytes) -> _Answer:
    response = msgspec.json.decode(content, type=_Response)
    if response.status not in ("completed", "incomplete"):
        raise NotTheRowsFaultError(f"The engine broke off with status {response.status!r}")
    return _Answer(response.status, response.usage or _Usage())


def _tokenized(content: bytes) -> _Answer:
    return _Answer(None, _Usage(prompt_tokens=msgspec.json.decode(content, type=_Tokenized).count))


_READERS: Final[dict[str, Callable[[bytes], _Answer]]] = {
    CHAT_COMPLETIONS: _completion,
    COMPLETIONS: _completion,
    EMBEDDINGS: _embeddings,
    RESPONSES: _response,
    TOKENIZE: _tokenized,
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
