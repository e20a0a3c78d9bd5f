"""What Airflow mounts: an application that is made when somebody first asks it something.

So the processes that import the plugin and answer no requests (scheduler, workers, triggerer, dag-processor) never
import FastAPI, httpx or any code of the pages for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


class LazyApp:
    """An ASGI application. Airflow starts and ends no mounted application but FastAPI's own, so it needs neither."""

    def __init__(self) -> None:
        self._app: Callable[..., Awaitable[None]] | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if self._app is None:
            from airflow_batch_llm.plugins.pages_app import create_app

            self._app = create_app()
        await self._app(scope, receive, send)
