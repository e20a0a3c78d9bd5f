"""What the pages' calls refuse, in the same shape as the service itself refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from airflow_batch_llm.wire import Problem, ProblemBody

_CODES: Final = {401: "unauthorized", 403: "forbidden", 404: "not_found"}


class Refusal(Exception):  # noqa: N818 (it is what is answered, and no failure)
    """An answer with a status of 4xx or 5xx: ``message`` says what happened and what to do, ``code`` names it."""

    def __init__(self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        body = ProblemBody(error=Problem(message=self.message, type=kind, code=self.code))
        return JSONResponse(body.model_dump(), status_code=self.status, headers=self.headers)


def add_refusal_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)  # noqa: S101 (registered for nothing else)
    return error.response()


def _http(request: Request, error: Exception) -> JSONResponse:
    """Also what Airflow says to somebody whom it does not know."""
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for nothing else)
    code = _CODES.get(error.status_code, "invalid_request")
    message = f"{error.detail}. Nothing was done."
    if error.status_code == 401:
        message = f"Airflow does not know who asks ({error.detail}). Log in to Airflow again. Nothing was done."
    return Refusal(error.status_code, code, message, headers=error.headers).response()


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (registered for nothing else)
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"][1:])
    return Refusal(400, "invalid_request", f"{place}: {first['msg']}. Nothing was done.").response()
