"""Reading and checking a request file: one JSON object a line, each the body of one call of one endpoint.

The whole file is checked before anything of it runs. Memory is bounded by a line, never by the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import msgspec

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.service.blocks import ROW_BYTES
from airflow_batch_llm.service.token_estimates import BYTES_PER_TOKEN, answer_estimate
from airflow_batch_llm.settings import Limits
from airflow_batch_llm.wire import BatchError

MOST_ERRORS: Final = 100
"""How many wrong lines are told; a file with more of them is wrong as a whole."""
CUSTOM_ID_LENGTH: Final = 512
_LIMITS_OF_ANSWERS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MUST_BE_OFF: Final = {
    "stream": "A batch has no streams: leave `stream` out, or set it to false.",
    "background": "A batch is in the background itself: leave `background` out, or set it to false.",
}
ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""vLLM answers 200 to a role that does not exist."""


class RequestFileInvalidError(Exception):
    """Some lines are wrong, so nothing of the file runs."""

    def __init__(self, errors: list[BatchError]) -> None:
        super().__init__(errors[0].message)
        self.errors = errors


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request: its number among the requests (from 0) and its line in the file (from 1)."""

    row: int
    line: int
    custom_id: str
    body: msgspec.Raw
    tokens: int
    """An estimate of prompt and answer together."""


class _Line(msgspec.Struct):
    custom_id: Any = msgspec.UNSET
    method: Any = msgspec.UNSET
    url: Any = msgspec.UNSET
    body: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    role: Any = None


class _WrongLineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


_line_decoder: Final = msgspec.json.Decoder(_Line)
_body_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_messages_decoder: Final = msgspec.json.Decoder(list[_Message])


@dataclass
class RequestFile:
    """The lines of one file for one ``endpoint``."""

    stream: BinaryIO
    endpoint: str
    known_fields: frozenset[str]
    limits: Limits
    errors: list[BatchError] = field(default_factory=list)
    model: str | None = None
    """That of the first right line, and so of all."""
    rows: int = 0
    _embedding_inputs: int = 0

    def requests(self) -> Iterator[RequestLine]:
        """The right lines in order. What is wrong with the others is in ``errors`` afterwards."""
        for number, line in self._lines():
            try:
                request = self._request(number, line)
            except _WrongLineError as error:
                self._wrong(number, error.code, str(error), error.param)
            else:
                yield request
            self.rows += 1
            if len(self.errors) >= MOST_ERRORS:
                self._wrong(None, "too_many_errors", f"The check ended after {MOST_ERRORS} wrong lines.")
                return
            if self._too_many():
                return
        if self.rows == 0 and not self.errors:
            self._wrong(None, "empty_file", "The file has no requests.")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        number = 0
        while line := self.stream.readline(ROW_BYTES + 1):
            number += 1
            if len(line) > ROW_BYTES:
                self._wrong(number, "line_too_long", f"The line is longer than {ROW_BYTES:,} bytes, which is the most.")
                return
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line := line.strip():
                yield number, line

    def _request(self, number: int, line: bytes) -> RequestLine:
        parsed = _parsed(line)
        custom_id = _custom_id(parsed.custom_id)
        _same("method", parsed.method, "POST", "invalid_method")
        _same("url", parsed.url, self.endpoint, "mismatched_endpoint")
        if not parsed.body:
            raise _missing("body")
        try:
            body = _body(parsed.body)
            self._check_model(body)
            self._check_fields(body)
            tokens = len(memoryview(parsed.body)) // BYTES_PER_TOKEN + _answer_tokens(body)
        except msgspec.DecodeError as error:  # a number that no computer holds, say
            raise _WrongLineError(
                "invalid_value", f"The body has a value that cannot be read: {error}.", "body"
            ) from error
        return RequestLine(self.rows, number, custom_id, parsed.body, tokens)

    def _check_model(self, body: dict[str, msgspec.Raw]) -> None:
        if "model" not in body:
            raise _missing("body.model")
        model = msgspec.json.decode(body["model"])
        if not isinstance(model, str) or not model:
            raise _WrongLineError("invalid_model", f"`model` is {_shown(model)}, not a model's name.", "body.model")
        if self.model is None:
            self.model = model
        elif model != self.model:
            raise _WrongLineError(
                "mismatched_model",
                f"`model` is {_shown(model)}, but the lines before have {_shown(self.model)}. A file is for one model.",
                "body.model",
            )

    def _check_fields(self, body: dict[str, msgspec.Raw]) -> None:
        if not body.keys() <= self.known_fields:
            for name in body.keys() - self.known_fields:
                if bytes(body[name]) != b"null":
                    raise _WrongLineError(
                        "unknown_parameter",
                        f"The engine does not know `{name[:100]}` and would ignore it in silence. "
                        "Leave it out, or correct its name.",
                        f"body.{name[:100]}",
                    )
        for name, sentence in _MUST_BE_OFF.items():
            if name in body and bytes(body[name]) not in (b"false", b"null"):
                raise _WrongLineError(f"{name}_not_supported", sentence, f"body.{name}")
        if "messages" in body:
            _check_roles(body["messages"])
        if self.endpoint == EMBEDDINGS and "input" in body:
            self._embedding_inputs += _inputs(body["input"])

    def _too_many(self) -> bool:
        """Whether the file has more than this service takes; said once, and the check ends there."""
        for what, limit, count in (
            ("requests", self.limits.file_rows, self.rows),
            ("embedding inputs", self.limits.embedding_inputs, self._embedding_inputs),
        ):
            if limit is not None and count > limit:
                self._wrong(
                    None, "limit_exceeded", f"The file has {count:,} {what} or more, and the limit is {limit:,}."
                )
                return True
        return False

    def _wrong(self, line: int | None, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(BatchError(code=code, message=message, line=line, param=param))


def _parsed(line: bytes) -> _Line:
    try:
        line.decode()
        return _line_decoder.decode(line)
    except UnicodeDecodeError as error:
        raise _WrongLineError(
            "invalid_utf8", f"The line is not UTF-8: {error.reason} at byte {error.start}."
        ) from error
    except msgspec.ValidationError as error:
        raise _WrongLineError("invalid_json_line", "The line is valid JSON, but no object.") from error
    except msgspec.DecodeError as error:
        raise _WrongLineError("invalid_json_line", f"The line is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise _WrongLineError("invalid_json_line", "The line is nested too deeply.") from error


def _custom_id(value: Any) -> str:
    if value is msgspec.UNSET:
        raise _missing("custom_id")
    if not isinstance(value, str) or not 0 < len(value) <= CUSTOM_ID_LENGTH:
        raise _WrongLineError(
            "invalid_custom_id",
            f"`custom_id` is {_shown(value)}, not a text of 1 to {CUSTOM_ID_LENGTH} characters.",
            "custom_id",
        )
    return value


def _same(name: str, value: Any, wanted: str, code: str) -> None:
    if value is msgspec.UNSET:
        raise _missing(name)
    if value != wanted:
        raise _WrongLineError(code, f"`{name}` is {_shown(value)}, and must be '{wanted}' in this batch.", name)


def _body(raw: msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return _body_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise _WrongLineError("invalid_body", "`body` is no JSON object.", "body") from error


def _check_roles(messages: msgspec.Raw) -> None:
    try:
        roles = [message.role for message in _messages_decoder.decode(messages)]
    except msgspec.DecodeError:
        return  # the engine says what is wrong with them
    for role in roles:
        if not isinstance(role, str) or role not in ROLES:
            raise _WrongLineError(
                "invalid_role",
                f"A message has the role {_shown(role)}, which no chat has. Roles are: {', '.join(sorted(ROLES))}.",
                "body.messages",
            )


def _inputs(given: msgspec.Raw) -> int:
    """How many texts one request wants embedded: a list of texts or of token lists counts each."""
    texts = msgspec.json.decode(given)
    if not isinstance(texts, list) or not texts or isinstance(texts[0], int):
        return 1
    return len(texts)


def _answer_tokens(body: dict[str, msgspec.Raw]) -> int:
    for name in _LIMITS_OF_ANSWERS:
        if name in body:
            return answer_estimate(msgspec.json.decode(body[name]))
    return answer_estimate(None)


def _missing(name: str) -> _WrongLineError:
    return _WrongLineError("missing_required_parameter", f"Missing required parameter: '{name}'.", name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
