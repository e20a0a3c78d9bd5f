"""Every refusal in the body of an OpenAI error, whatever raised it, and a description of the API that says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

from airflow_batch_llm.errors import LeaseLostError, RefusedError, TooManyRequestsError
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.wire import Problem, ProblemBody

log = logging.getLogger(__name__)

_MEANING: Final = {
    400: "The request cannot be done as it was asked. Nothing was done.",
    401: "The token is missing or not one of this service's.",
    403: "The token lacks the scope that the call needs. Nothing was done.",
    404: "There is no such thing, or it is not the caller's.",
    409: "The request contradicts what is stored. Nothing was done.",
    413: "The request is larger than this service takes. Nothing was stored.",
    416: "The range begins behind the last byte.",
    429: "Too many requests of this kind. Nothing was done.",
    503: "The service cannot use its store or its storage now. The same call may be made again.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can answer with these refusals."""
    return {status: {"model": ProblemBody, "description": _MEANING[status]} for status in statuses}


def problem(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A refusal as a response. What came from the request is repeated only as far as it can be sent at all."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = Problem(message=_sendable(message), type=kind, param=_sendable(param) if param else param, code=code)
    return JSONResponse(ProblemBody(error=error).model_dump(), status_code=status, headers=headers)


def add_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(LeaseLostError, _lease_lost)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(OSError, _storage_trouble)
    app.add_exception_handler(StoreTroubleError, _store_trouble)


def describe_truthfully(app: FastAPI) -> None:
    """Makes ``app.openapi()`` say what is answered: 400 for what does not validate (not 422), 401, 403, 413
    for a body, and 503."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _make_true(described())
        assert app.openapi_schema is not None  # noqa: S101 (FastAPI keeps what it described)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _make_true(description: dict[str, Any]) -> None:
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    own = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= own.pop("$defs") | {ProblemBody.__name__: own}
    for path, methods in description["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            statuses = [503]
            if responses.pop("422", None):
                statuses.append(400)
            if "/v1/" in path:
                statuses += [401, 403]
            if "requestBody" in operation:
                statuses.append(413)
            for status in statuses:
                responses.setdefault(str(status), _described(status))
            for status, response in responses.items():
                if int(status) >= 400:  # FastAPI takes a refusal for what the route gives else
                    response["content"] = _described(int(status))["content"]


def _described(status: int) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}
    return {"description": _MEANING[status], "content": {"application/json": {"schema": schema}}}


def _sendable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)  # noqa: S101 (registered for nothing else)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, TooManyRequestsError) else None
    return problem(error.status, error.message, error.code, error.param, headers)


def _lease_lost(request: Request, error: Exception) -> JSONResponse:
    return problem(409, str(error), "lease_lost")


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for nothing else)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return problem(400, f"The body is not JSON: {first['ctx']['error']}. Nothing was done.", "invalid_json")
    sent = request.headers.get("content-type", "")
    if first["loc"] == ("body",) and "json" not in sent:
        message = (
            f"The body has the Content-Type {sent or '(none)'}, but it must be application/json. Nothing was done."
        )
        return problem(400, message, "invalid_content_type", "Content-Type")
    place = ".".join(str(step) for step in first["loc"][1:]) or str(first["loc"][0])
    return problem(400, f"{place}: {first['msg']}. Nothing was done.", "invalid_request", place)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    if error.__cause__ is not None and error.status_code == 400:  # FastAPI's, where the body cannot even be parsed
        return problem(400, f"The body is not JSON: {error.__cause__}. Nothing was done.", "invalid_json")
    what = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = _allowed(request)
        message = f"{what}: Method not allowed; allowed there: {allowed}. Nothing was done."
        return problem(405, message, "method_not_allowed", headers={"Allow": allowed})
    code = "not_found" if error.status_code == 404 else "invalid_request"
    return problem(error.status_code, f"{what}: {error.detail}.", code, headers=error.headers)


def _allowed(request: Request) -> str:
    """The methods of all routes with this path; Starlette's own header knows the first route only."""
    routes: list[BaseRoute] = request.app.routes
    matching = (route for route in routes if route.matches(request.scope)[0] != Match.NONE)
    return ", ".join(sorted({method for route in matching for method in getattr(route, "methods", None) or ()}))


def _gone(request: Request, error: Exception) -> JSONResponse:
    """Nobody reads this answer."""
    log.info("%s %s: the client went away", request.method, request.url.path)
    return problem(400, "The request broke off. Nothing was stored.", "request_incomplete")


def _storage_trouble(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s broke off", request.method, request.url.path, exc_info=error)
    assert isinstance(error, OSError)  # noqa: S101 (registered for nothing else)
    return problem(503, f"The service cannot use its storage: {error.strerror or error}. Try again.", "storage_trouble")


def _store_trouble(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s broke off: %s", request.method, request.url.path, error)
    return problem(503, f"{error} Try again.", "store_trouble")
