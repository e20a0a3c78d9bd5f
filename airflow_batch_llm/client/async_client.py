"""What a trigger needs of a batch service, for an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import httpx

from airflow_batch_llm.client.answers import parsed, translated
from airflow_batch_llm.client.batch_client import DEFAULT_URL, TIMEOUT, base_url, cancel_body, headers
from airflow_batch_llm.wire import Batch


class AsyncBatchClient:
    """Looks at batches and cancels them; otherwise as :class:`~airflow_batch_llm.client.batch_client.BatchClient`."""

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = base_url(url)
        with translated(self.url):
            self._http = httpx.AsyncClient(base_url=self.url, headers=headers(token), timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, batch_id: str) -> Batch:
        async with self._translated():
            response = await self._http.get(f"/v1/batches/{batch_id}")
        return parsed(Batch, response, self.url)

    async def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        """Asks for the batch's end; with a ``holder`` it counts only while that holds it."""
        async with self._translated():
            response = await self._http.post(f"/v1/batches/{batch_id}/cancel", json=cancel_body(holder))
        return parsed(Batch, response, self.url)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        with translated(self.url):
            yield
