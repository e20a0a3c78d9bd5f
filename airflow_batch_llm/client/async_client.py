"""What a trigger needs of a batch service, for an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import httpx

from airflow_batch_llm.client.answers import parsed, translated
from airflow_batch_llm.client.batch_client import DEFAULT_URL, TIMEOUT, cancel_body, headers, segment
from airflow_batch_llm.client.replicas import REPEATABLE, async_transport, base_urls
from airflow_batch_llm.wire import Batch


class AsyncBatchClient:
    """Looks at batches and cancels them; otherwise as :class:`~airflow_batch_llm.client.batch_client.BatchClient`."""

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        urls = base_urls(url)
        self.url = ",".join(urls)
        with translated(self.url):
            self._http = httpx.AsyncClient(
                base_url=urls[0], headers=headers(token), timeout=timeout, transport=async_transport(urls)
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, batch_id: str) -> Batch:
        async with self._translated():
            response = await self._http.get(f"/v1/batches/{segment(batch_id)}")
        return parsed(Batch, response, self.url)

    async def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        """Asks for the batch's end; with a ``holder`` it counts only while that holds it."""
        async with self._translated():
            path = f"/v1/batches/{segment(batch_id)}/cancel"
            response = await self._http.post(path, json=cancel_body(holder), extensions=REPEATABLE)
        return parsed(Batch, response, self.url)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        with translated(self.url):
            yield
