"""What a page asks: its body and its parameters, of which only those go on that a call has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from airflow_batch_llm.page_wire import MOST_PAGE_WAIT
from airflow_batch_llm.plugins.refusals import Refusal

MOST_BODY_BYTES: Final = 1 << 18
"""The longest filter is a hundred names of 512 characters."""

_Asked = TypeVar("_Asked", bound=BaseModel)


async def body_of(request: Request, kind: type[_Asked]) -> _Asked:
    """The request's body as ``kind``. Raises :class:`Refusal` where it is none, or too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise Refusal(
                413, "body_too_large", f"The body is larger than the {MOST_BODY_BYTES:,} bytes that a page sends."
            )
    try:
        return kind.model_validate_json(bytes(body) or b"{}")
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the body"
        raise Refusal(400, "invalid_request", f"{place}: {first['msg']}. Nothing was done.") from error


def parameters(request: Request, *names: str) -> dict[str, str]:
    """Those of the query that are named here and given there. A team never is: the connection's token decides that."""
    return {name: request.query_params[name] for name in names if name in request.query_params}


def wait_of(params: Mapping[str, Any]) -> float:
    """How long the service may wait at most before it answers; what is no number, or too long, it refuses itself."""
    try:
        return min(max(float(params.get("wait", 0.0)), 0.0), MOST_PAGE_WAIT)
    except ValueError:
        return 0.0
