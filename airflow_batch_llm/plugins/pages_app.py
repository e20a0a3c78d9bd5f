"""What Airflow's api-server answers below ``/batch-llm``: the files of the pages, and their calls of a service.

The promises: nothing is answered without a user of Airflow, nothing of a batch to a user without Airflow's permission
on its Dag, and nothing is changed for a request that does not come from our own page.
"""

from __future__ import annotations

from typing import Final

from fastapi import Depends, FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_batch_llm import __version__
from airflow_batch_llm.pages.files import page_files
from airflow_batch_llm.plugins import batch_calls, team_calls
from airflow_batch_llm.plugins.own_page import only_from_own_page
from airflow_batch_llm.plugins.refusals import Refusal, add_refusal_handlers
from airflow_batch_llm.plugins.service_calls import ServiceCalls
from airflow_batch_llm.plugins.viewer import viewer

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""What comes from here is a part of Airflow's page and never a page itself, whatever somebody's rows look like."""
_EVERY_METHOD: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app() -> FastAPI:
    """The application. Its description is not offered: nothing here is an API for others."""
    app = FastAPI(
        title="LLM batches",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(viewer), Depends(only_from_own_page)],
    )
    app.state.calls = ServiceCalls()
    app.state.files = page_files()
    add_refusal_handlers(app)
    app.add_middleware(_Sealed)
    app.add_api_route("/static/{name:path}", _file, methods=["GET"])
    app.include_router(team_calls.router, prefix="/api/v1")
    app.include_router(batch_calls.router, prefix="/api/v1")
    # Last, so that what there is not needs a user as well, and a wrong method tells nobody which paths there are.
    app.add_api_route("/{path:path}", _nothing, methods=_EVERY_METHOD, include_in_schema=False)
    return app


def _file(request: Request, name: str) -> Response:
    """A file of the pages. A browser keeps it, and asks each time whether it is still the one."""
    found = request.app.state.files.get(name)
    if found is None:
        raise Refusal(404, "not_found", f"The pages have no file {name!r}.")
    kept = {"Cache-Control": "private, no-cache", "ETag": found.etag}
    if found.is_known(request.headers):
        return Response(status_code=304, headers=kept)
    return Response(found.content, headers={**kept, "Content-Type": found.media_type})


def _nothing(request: Request) -> Response:
    raise Refusal(404, "not_found", f"{request.method} {request.url.path}: there is no such call. Nothing was done.")


class _Sealed:
    """Adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers.update(HEADERS)
            await send(message)

        await self._app(scope, receive, sealed)
