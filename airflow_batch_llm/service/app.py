"""The service as an ASGI application, and as a process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from airflow_batch_llm import __version__
from airflow_batch_llm.errors import LeaseLostError, RefusedError
from airflow_batch_llm.service import routes, worker_routes
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.supervisor import Supervisor
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.wire import Problem, ProblemBody

log = logging.getLogger(__name__)

REQUEST_THREADS: Final = 16


def create_app(state: ServiceState) -> FastAPI:
    """The HTTP API over ``state``. Runs no duties: see :func:`serve`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Requests wait for the store, which takes one writer at a time: more threads would only cost memory.
        anyio.to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
        yield
        state.database.close()

    app = FastAPI(title="airflow-batch-llm", version=__version__, lifespan=lifespan)
    app.state.service = state
    app.include_router(routes.router)
    app.include_router(worker_routes.router)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(LeaseLostError, _lease_lost)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _storage_trouble)
    app.add_exception_handler(StoreTroubleError, _store_trouble)
    return app


def serve(settings: ServiceSettings) -> None:
    """Runs the service until it is asked to end."""
    state = ServiceState.open(settings)
    supervisor = Supervisor(settings, state.duties, state.batches)
    supervisor.start()
    log.info("serving on http://%s:%d, home %s", settings.host, settings.port, settings.home)
    try:
        uvicorn.run(
            create_app(state), host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=5
        )
    finally:
        supervisor.stop()


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
