"""What a batch service's answer says: the object asked for, or the error that fits.

Other servers than ours speak OpenAI's Batch API too, each a little differently, so this side is tolerant: of words for
a status that it does not know, of fields that are absent, and of errors in any of the usual forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

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
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch, BatchList, FileObject

LONGEST_QUOTE: Final = 300
"""How many characters of what a server said are repeated in an error."""

_REFUSALS: Final[dict[int, type[RefusedError]]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
}
_ASK_AGAIN: Final = frozenset({408, 425, 429})
"""Refusals that say nothing of the call, only of the moment."""
_SPELLINGS: Final = {"canceled": BatchStatus.CANCELLED, "canceling": BatchStatus.CANCELLING}
_DECORATION: Final = frozenset(Batch.model_fields) - {
    *("id", "endpoint", "status", "input_file_id", "output_file_id", "error_file_id", "request_counts", "manifest"),
}
"""What a batch can be followed and read without."""

_Answer = TypeVar("_Answer", bound=BaseModel)


def checked(response: httpx.Response, url: str) -> httpx.Response:
    """The response itself, if it is a success; the matching error otherwise.

    An answer of which nothing follows for the call (5xx, 429, a redirect, a 404 that no batch service gave) is a
    :class:`NoAnswerError`.
    """
    if response.is_success:
        return response
    said = _said(response)
    if response.status_code in _ASK_AGAIN or not response.is_client_error:
        raise NoAnswerError(f"{_trouble(response, url)}{f': {said[0]}' if said else '.'}{_retry_after(response)}")
    if response.status_code == 404 and said is None:
        raise NoAnswerError(
            f"{_request(response)} was answered HTTP 404, and not in the way of a batch service. Is {url} the address "
            f"of `batch-llm serve`, or of another server with OpenAI's batch API?{_quote(response)}"
        )
    message, code, param = said or (f"HTTP {response.status_code}.{_quote(response)}", None, None)
    kind = _REFUSALS.get(response.status_code, InvalidRequestError)
    raise kind(message, code=code or "invalid_request", param=param)


def parsed(kind: type[_Answer], response: httpx.Response, url: str) -> _Answer:
    """The object of the answer. Raises :class:`NoAnswerError` where it is none."""
    try:
        return kind.model_validate(_readable(kind, json.loads(checked(response, url).content)))
    except (ValidationError, ValueError) as error:
        raise NoAnswerError(
            f"{_request(response)} did not give a {kind.__name__.lower()}. "
            f"Is {url} the address of `batch-llm serve`, or of another server with OpenAI's batch API?"
        ) from error


@contextmanager
def translated(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAnswerError(
            f"The batch service at {url} cannot be reached ({type(error).__name__}: {error}). "
            "Is `batch-llm serve` running there, and is the address right?"
        ) from error


def _readable(kind: type[BaseModel], values: Any) -> Any:
    """The values of an answer with what other servers do differently put right."""
    if not isinstance(values, dict):
        return values
    if kind is Batch:
        return _readable_batch(values)
    if kind is BatchList and isinstance(values.get("data"), list):
        return {**values, "data": [_readable(Batch, batch) for batch in values["data"]]}
    if kind is FileObject:
        given = {name: value for name, value in values.items() if value is not None and name != "status"}
        return {"bytes": 0, "created_at": 0, "filename": "", "purpose": "batch", **given}
    return values


def _readable_batch(values: Mapping[str, Any]) -> dict[str, Any]:
    batch = {"endpoint": "", "created_at": 0, **values, "status": _status(values.get("status"))}
    if isinstance(batch.get("metadata"), dict):
        batch["metadata"] = {name: str(value) for name, value in batch["metadata"].items()}
    if isinstance(batch.get("errors"), dict):
        batch["errors"] = {"data": [_readable_error(error) for error in batch["errors"].get("data") or []]}
    if isinstance(batch.get("request_counts"), dict):
        batch["request_counts"] = {name: count or 0 for name, count in batch["request_counts"].items()}
    try:
        Batch.model_validate(batch)
    except ValidationError as error:
        unusable = {found["loc"][0] for found in error.errors()} & _DECORATION
        return {"created_at": 0} | {name: value for name, value in batch.items() if name not in unusable}
    return batch


def _readable_error(error: Any) -> dict[str, Any]:
    if not isinstance(error, dict):
        return {"code": "unknown", "message": str(error)}
    given = {name: value for name, value in error.items() if value is not None}
    return {"code": "unknown", "message": json.dumps(given), **given}


def _status(word: Any) -> Any:
    """A status that this side knows: a word for one that it does not must be one of a living batch."""
    if not isinstance(word, str):
        return word
    word = word.lower()
    return _SPELLINGS.get(word) or (word if word in set(BatchStatus) else BatchStatus.IN_PROGRESS)


def _said(response: httpx.Response) -> tuple[str, str | None, str | None] | None:
    """Message, code and field of an error in one of the usual forms; None where the body has none of them."""
    try:
        body = json.loads(response.content)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error["message"], _text(error.get("code")), _text(error.get("param"))
    for told in (error, body.get("detail"), body.get("message")):
        if told:
            return _cut(told if isinstance(told, str) else json.dumps(told)), None, None
    return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _cut(text: str) -> str:
    return " ".join(text.split())[:LONGEST_QUOTE]


def _quote(response: httpx.Response) -> str:
    said = _cut(response.text)
    return f" It said: {said}" if said else ""


def _request(response: httpx.Response) -> str:
    return f"{response.request.method} {response.request.url}"


def _trouble(response: httpx.Response, url: str) -> str:
    if response.status_code in _ASK_AGAIN:
        return f"The batch service at {url} takes no more calls for now (HTTP {response.status_code})"
    if response.is_server_error:
        return f"The batch service at {url} has trouble (HTTP {response.status_code})"
    return (
        f"{_request(response)} was answered HTTP {response.status_code}, and not in the way of a batch service. "
        f"Is {url} the right address?"
    )


def _retry_after(response: httpx.Response) -> str:
    seconds = response.headers.get("Retry-After")
    return f" It asks to be left alone for: {seconds} (seconds, or until a date)." if seconds else ""
