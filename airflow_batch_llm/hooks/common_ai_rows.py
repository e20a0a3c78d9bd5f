"""A request of common.ai as a line of a request file, and a line of a result file as common.ai's result."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from airflow.providers.common.ai.batch.base import BatchRequest, RawResultItem
from airflow.providers.common.ai.exceptions import LLMBatchInputError

from airflow_batch_llm.models import CHAT_COMPLETIONS

log = logging.getLogger(__name__)

_UNDONE: Final = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
"""Error codes of requests that were never answered; any other is a failure of the request itself."""


@dataclass(frozen=True)
class Asked:
    """What all requests of a batch have in common."""

    model: str
    system_prompt: str
    max_tokens: int
    parameters: Mapping[str, Any]
    directive: Mapping[str, Any]


def request_line(custom_id: str, request: BatchRequest, asked: Asked) -> bytes:
    """The line of one request. What it says itself goes before what all have in common, but for model and messages."""
    system_prompt = request.get("system_prompt") or asked.system_prompt
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    body = dict(asked.parameters) | (request.get("params") or {})
    # max_tokens is the old name of the same limit; a body with both would be a contradiction.
    body.pop("max_tokens", None)
    body |= {
        "model": asked.model,
        "messages": [*system, {"role": "user", "content": request["prompt"]}],
        "max_completion_tokens": request.get("max_tokens") or asked.max_tokens,
        **asked.directive,
    }
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT_COMPLETIONS, "body": body}
    try:
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise LLMBatchInputError(
            f"Request {custom_id} holds half of a character (a lone surrogate), which cannot be sent: {error.reason}. "
            "Nothing was submitted. Clean the text, for example with text.encode(errors='replace').decode()."
        ) from error


def result_item(line: bytes, *, place: str) -> RawResultItem | None:
    """What became of one request; None, with a warning that quotes nothing, for a line that cannot be read.

    One such line must not hide the others: common.ai counts its request as missing.
    """
    try:
        result = json.loads(line)
        custom_id = str(result["custom_id"])
        number = int(custom_id.rpartition("-")[2])
        response = _object(result.get("response"))
    except (ValueError, TypeError, KeyError, AttributeError):
        log.warning("The result in %s cannot be read, so its request counts as missing.", place)
        return None
    body = _object(response.get("body"))
    if result.get("error") is None and response.get("status_code") == 200:
        return _answered(custom_id, number, body)
    error = _error(result.get("error"), response.get("status_code"), body)
    return RawResultItem(
        custom_id=custom_id,
        index=number,
        provider_status=_UNDONE.get(str(error["provider_code"]), "errored"),  # type: ignore[arg-type]
        model=body.get("model"),
        usage=None,
        finish_reason=None,
        error=error,
        raw=None,
    )


def _answered(custom_id: str, number: int, body: Mapping[str, Any]) -> RawResultItem:
    choices = body.get("choices") or [{}]
    choice, usage = _object(choices[0]), _object(body.get("usage"))
    return RawResultItem(
        custom_id=custom_id,
        index=number,
        provider_status="success",
        model=body.get("model"),
        usage={
            "input_tokens": usage.get("prompt_tokens") or 0,
            "output_tokens": usage.get("completion_tokens") or 0,
        },
        finish_reason=choice.get("finish_reason"),
        error=None,
        raw=_object(choice.get("message")).get("content"),
    )


def _error(error: Any, status_code: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    told = _object(error) or _object(body.get("error"))
    code = told.get("code") or status_code
    return {
        "type": _UNDONE.get(str(code), "provider_error"),
        "message": told.get("message") or (str(error) if error else f"The request was answered HTTP {status_code}."),
        "provider_code": None if code is None else str(code),
        "stage": "provider",
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
