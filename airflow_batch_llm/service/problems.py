"""Every refusal in the body of an OpenAI error, whatever raised it."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from airflow_batch_llm.errors import LeaseLostError, RefusedError
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.wire import Problem, ProblemBody

log = logging.getLogger(__name__)


def add_problem_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(LeaseLostError, _lease_lost)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _storage_trouble)
    app.add_exception_handler(StoreTroubleError, _store_trouble)


def _problem(status: int, message: str, code: str, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = ProblemBody(error=Problem(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status_code=status)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)  # noqa: S101 (registered for nothing else)
    return _problem(error.status, error.message, error.code, error.param)


def _lease_lost(request: Request, error: Exception) -> JSONResponse:
    return _problem(409, str(error), "lease_lost")


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for nothing else)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _problem(400, f"The body is not JSON: {first['ctx']['error']}. Nothing was done.", "invalid_json")
    place = ".".join(str(step) for step in first["loc"][1:]) or str(first["loc"][0])
    return _problem(400, f"{place}: {first['msg']}. Nothing was done.", "invalid_request", place)


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    code = "not_found" if error.status_code == 404 else "invalid_request"
    return _problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}.", code)


def _storage_trouble(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s broke off", request.method, request.url.path, exc_info=error)
    assert isinstance(error, OSError)  # noqa: S101 (registered for nothing else)
    return _problem(
        503, f"The service cannot use its storage: {error.strerror or error}. Try again.", "storage_trouble"
    )


def _store_trouble(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s broke off", request.method, request.url.path, exc_info=error)
    return _problem(503, f"{error} Try again.", "store_trouble")
