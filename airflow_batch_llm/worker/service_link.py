"""A worker's calls to the service. Thread-safe: the runner and the heartbeat share one."""

from __future__ import annotations

from typing import Any

import httpx

from airflow_batch_llm.client.answers import checked, translated
from airflow_batch_llm.client.batch_client import TIMEOUT, headers
from airflow_batch_llm.client.replicas import REPEATABLE, base_urls, sync_transport
from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.worker_wire import Claim, Extended, PartRecord, Registered, Registration


class ServiceLink:
    """``/worker/v1`` as Python calls.

    Raises :class:`LeaseLostError` where the lease is another's by now, :class:`RefusedError` for other refusals and
    :class:`NoAnswerError` where nothing is known; then the same call may be made again, it takes effect once. ``url``
    may be several addresses of one service with commas between them.
    """

    def __init__(self, url: str, token: str) -> None:
        urls = base_urls(url)
        self.url = ",".join(urls)
        with translated(self.url):
            self._http = httpx.Client(
                base_url=urls[0], headers=headers(token), timeout=TIMEOUT, transport=sync_transport(urls)
            )

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        """Raises :class:`UnauthorizedError` where the token is not the service's, or not one for workers."""
        self._call("GET", "/worker/v1/access")

    def register(self, registration: Registration) -> Registered:
        response = self._call("POST", "/worker/v1/register", json=registration.model_dump())
        return Registered.model_validate_json(response.content)

    def leave(self, worker_id: str) -> None:
        self._call("POST", f"/worker/v1/workers/{worker_id}/leave")

    def claim(self, worker_id: str) -> Claim | None:
        response = self._call("POST", "/worker/v1/claim", json={"worker_id": worker_id})
        return None if response.status_code == httpx.codes.NO_CONTENT else Claim.model_validate_json(response.content)

    def rows(self, claim: Claim) -> bytes:
        """The packed lines of a claimed chunk."""
        return self._lease_call(claim, "GET", claim.rows_url).content

    def put_part(self, claim: Claim, number: int, content: bytes) -> None:
        url = claim.parts_url.replace("{part}", str(number))
        self._lease_call(claim, "PUT", url, content=content, headers={"Content-Type": "application/zstd"})

    def extend(self, claim: Claim, parts: list[PartRecord]) -> Extended:
        response = self._lease_call(claim, "POST", f"{_chunk(claim)}/extend", json=_body(claim, parts))
        return Extended.model_validate_json(response.content)

    def commit(self, claim: Claim, parts: list[PartRecord]) -> None:
        self._lease_call(claim, "POST", f"{_chunk(claim)}/commit", json=_body(claim, parts))

    def release(self, claim: Claim, parts: list[PartRecord], **how: Any) -> None:
        self._lease_call(claim, "POST", f"{_chunk(claim)}/release", json=_body(claim, parts) | how)

    def _lease_call(self, claim: Claim, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._call(method, path, **request)
        except ConflictError as error:
            if error.code == "lease_lost":
                raise LeaseLostError(claim.chunk_id, claim.attempt) from error
            raise

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        with translated(self.url):
            # A claim whose answer was lost costs an attempt: its lease runs out and the chunk is handed on.
            response = self._http.request(method, path, extensions=REPEATABLE, **request)
        return checked(response, self.url)


def _chunk(claim: Claim) -> str:
    return f"/worker/v1/chunks/{claim.chunk_id}"


def _body(claim: Claim, parts: list[PartRecord]) -> dict[str, Any]:
    return {"attempt": claim.attempt, "parts": [part.model_dump() for part in parts]}
