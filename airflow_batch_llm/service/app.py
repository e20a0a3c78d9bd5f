"""The service as an ASGI application, and as a process."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio.to_thread
import uvicorn
from fastapi import Depends, FastAPI

from airflow_batch_llm import __version__
from airflow_batch_llm.service import (
    batch_routes,
    event_routes,
    extension_routes,
    file_routes,
    overview_routes,
    page_routes,
    report_routes,
    row_routes,
    worker_routes,
)
from airflow_batch_llm.service.changes import Changes
from airflow_batch_llm.service.gate import Gate
from airflow_batch_llm.service.listening import address, bound
from airflow_batch_llm.service.notifier import check_webhooks
from airflow_batch_llm.service.page_calls import PageCalls
from airflow_batch_llm.service.plain_values import only_plain_values
from airflow_batch_llm.service.problems import add_problem_handlers, describe_truthfully
from airflow_batch_llm.service.scratch import scratch_folder
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.supervisor import Supervisor
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.changes import BatchChanges

log = logging.getLogger(__name__)

REQUEST_THREADS: Final = 16
LOOK_THREADS: Final = 4
"""Beside these, for calls that look at many rows."""
EXTENSIONS: Final = (extension_routes, event_routes, overview_routes, report_routes, row_routes, page_routes)


def create_app(state: ServiceState) -> FastAPI:
    """The HTTP API over ``state``. Runs no duties: see :func:`serve`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Requests wait for the store, which takes one writer at a time: more threads would only cost memory.
        anyio.to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
        yield
        state.database.close()

    app = FastAPI(
        title="airflow-batch-llm", version=__version__, lifespan=lifespan, dependencies=[Depends(only_plain_values)]
    )
    app.state.service = state
    app.state.changes = Changes(BatchChanges(state.database))
    app.state.looks = anyio.CapacityLimiter(LOOK_THREADS)
    extensions = EXTENSIONS if state.settings.extensions else ()
    for routes in (file_routes, *extensions, batch_routes, worker_routes):
        app.include_router(routes.router)
    app.add_middleware(Gate)
    if state.settings.extensions:
        app.add_middleware(PageCalls)  # the last one added is the first that is asked
    add_problem_handlers(app)
    describe_truthfully(app)
    return app


def serve(settings: ServiceSettings) -> None:
    """Runs the service until it is asked to end."""
    check_webhooks(settings.webhooks)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with bound(settings.host, settings.port) as sockets, scratch_folder(settings.scratch_root):
        _serve(settings, sockets)


def _serve(settings: ServiceSettings, sockets: list[socket.socket]) -> None:
    state = ServiceState.open(settings)
    supervisor = Supervisor(settings, state.duties, state.life, state.watching)
    supervisor.start()
    config = uvicorn.Config(create_app(state), log_level="warning", timeout_graceful_shutdown=5)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config).run(sockets)
    finally:
        supervisor.stop()


class _Server(uvicorn.Server):
    """Says when it serves, and lets those go who wait for changes before it waits for their connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settings = self.config.app.state.service.settings  # type: ignore[union-attr]
        url = address(sockets or [])
        pages = f", pages at {url}/ui/" if settings.extensions else ""
        log.info("serving on %s, home %s%s", url, settings.home, pages)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.changes.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)
