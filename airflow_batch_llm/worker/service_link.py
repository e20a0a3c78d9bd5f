"""A worker's calls to the service. Thread-safe: the runner and the heartbeat share one."""

from __future__ import annotations

from typing import Any, Final

import httpx

from airflow_batch_llm.client.answers import checked, translated
from airflow_batch_llm.client.batch_client import TIMEOUT, headers
from airflow_batch_llm.client.replicas import REPEATABLE, base_urls, sync_transport
from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.worker_wire import Begun, Claim, Extended, PartRecord, Registered, Registration

BEAT_SHARE: Final = 1 / 6
"""The part of a lease that a call may take which keeps it: between two beats there is time for a second address."""
CLAIM_SHARE: Final = 1 / 2
"""The same for a claim, whose lease begins before its answer comes. It reads parts, so it may take a while."""


class ServiceLink:
    """``/worker/v1`` as Python calls.

    Raises :class:`LeaseLostError` where the lease is another's by now, :class:`RefusedError` for other refusals and
    :class:`NoAnswerError` where nothing is known; then the same call may be made again, it takes effect once. ``url``
    may be several addresses of one service with commas between them.
    """

    _claim_timeout: httpx.Timeout = TIMEOUT

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
        registered = Registered.model_validate_json(response.content)
        self._claim_timeout = _part_of(registered.lease_seconds, CLAIM_SHARE)
        return registered

    def leave(self, worker_id: str) -> None:
        self._call("POST", f"/worker/v1/workers/{worker_id}/leave")

    def claim(self, worker_id: str) -> Claim | None:
        response = self._call("POST", "/worker/v1/claim", json={"worker_id": worker_id}, timeout=self._claim_timeout)
        return None if response.status_code == httpx.codes.NO_CONTENT else Claim.model_validate_json(response.content)

    def rows(self, claim: Claim) -> bytes:
        """The packed lines of a claimed chunk."""
        return self._lease_call(claim, "GET", claim.rows_url).content

    def begin(self, claim: Claim) -> Begun:
        """Says that the engine is about to get the first row of a chunk."""
        body, timeout = {"attempt": claim.attempt}, _part_of(claim.lease_seconds, BEAT_SHARE)
        response = self._lease_call(claim, "POST", f"{_chunk(claim)}/begin", json=body, timeout=timeout)
        return Begun.model_validate_json(response.content)

    def put_part(self, claim: Claim, number: int, content: bytes) -> None:
        url = claim.parts_url.replace("{part}", str(number))
        self._lease_call(claim, "PUT", url, content=content, headers={"Content-Type": "application/zstd"})

    def extend(self, claim: Claim, parts: list[PartRecord]) -> Extended:
        """Prolongs a lease and commits parts. Without parts, it gives up early enough to be said again in time."""
        timeout = TIMEOUT if parts else _part_of(claim.lease_seconds, BEAT_SHARE)
        body = _body(claim, parts)
        response = self._lease_call(claim, "POST", f"{_chunk(claim)}/extend", json=body, timeout=timeout)
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


def _part_of(lease_seconds: float, share: float) -> httpx.Timeout:
    seconds = lease_seconds * share
    return httpx.Timeout(seconds, connect=min(seconds, 5.0))


def _chunk(claim: Claim) -> str:
    return f"/worker/v1/chunks/{claim.chunk_id}"


def _body(claim: Claim, parts: list[PartRecord]) -> dict[str, Any]:
    return {"attempt": claim.attempt, "parts": [part.model_dump() for part in parts]}
