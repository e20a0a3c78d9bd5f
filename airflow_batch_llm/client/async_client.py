"""What a trigger needs of a batch service, for an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from airflow_batch_llm.client.answers import parsed, translated
from airflow_batch_llm.client.batch_client import (
    ANSWER_SECONDS,
    DEFAULT_URL,
    PAGE_BATCHES,
    TIMEOUT,
    cancel_body,
    headers,
    present,
    segment,
)
from airflow_batch_llm.client.replicas import REPEATABLE, async_transport, base_urls
from airflow_batch_llm.wire import Batch, BatchChangeList, BatchList, BatchWatch


class AsyncBatchClient:
    """Looks at batches, waits for them and cancels them.

    Otherwise as :class:`~airflow_batch_llm.client.batch_client.BatchClient`.
    """

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

    async def watch(
        self, seen: Mapping[str, str | None], *, wait: float, changes: Literal["all", "status"]
    ) -> BatchChangeList:
        """Those of at most 10,000 batches that are not in the version that was ``seen`` (None: in any).

        :param wait: for how many seconds, 60 at most, the service waits until there is one; it may find none.
        :param changes: whether progress alone makes another version, or only another status does.
        """
        body = BatchWatch.model_construct(batches=dict(seen), wait=wait, changes=changes)
        async with self._translated():
            response = await self._http.post(
                "/v1/batches/watch",
                content=body.model_dump_json(),
                headers={"Content-Type": "application/json"},
                timeout=httpx.Timeout(ANSWER_SECONDS + wait, connect=TIMEOUT.connect),
                extensions=REPEATABLE,
            )
        return parsed(BatchChangeList, response, self.url)

    async def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        """Asks for the batch's end; with a ``holder`` it counts only while that holds it."""
        async with self._translated():
            path = f"/v1/batches/{segment(batch_id)}/cancel"
            response = await self._http.post(path, json=cancel_body(holder), extensions=REPEATABLE)
        return parsed(Batch, response, self.url)

    async def find(self, key: str) -> Batch | None:
        """The newest generation of the batch under a key; None where no batch was ever submitted under it."""
        page = await self._page(key=key, limit=1)
        return page.data[0] if page.data else None

    async def of_group(self, group: str) -> AsyncIterator[Batch]:
        """All batches that were submitted with a group, newest first, page after page."""
        after: str | None = None
        while True:
            page = await self._page(group=group, after=after, limit=PAGE_BATCHES)
            for batch in page.data:
                yield batch
            after = page.last_id
            if not page.has_more:
                return

    async def _page(self, **params: Any) -> BatchList:
        async with self._translated():
            response = await self._http.get("/v1/batches", params=present(**params))
        return parsed(BatchList, response, self.url)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        with translated(self.url):
            yield
