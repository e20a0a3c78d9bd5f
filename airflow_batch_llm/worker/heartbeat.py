"""Keeps the leases of a worker alive, whatever its engine does."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Final, Protocol

from airflow_batch_llm.errors import BatchLLMError, LeaseLostError
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker_wire import Claim

log = logging.getLogger(__name__)

BEATS_PER_LEASE: Final = 3


class Leased(Protocol):
    """What a heartbeat keeps: something claimed that can be told of its end."""

    claim: Claim

    def lease_lost(self) -> None:
        """The chunk is another's: drop it. Called from the heartbeat's thread."""

    def asked_to_stop(self) -> None:
        """The batch is ending: give the chunk back. Called from the heartbeat's thread."""


@dataclass
class Heartbeat:
    """Extends every lease it was given, three times as often as needed, from a thread of its own.

    It does not wait for the engine or the event loop, so a slow engine never costs a lease.
    """

    link: ServiceLink
    lease_seconds: float
    _kept: dict[tuple[int, int], Leased] = field(default_factory=dict)
    """By chunk and attempt."""
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def keep(self, work: Leased) -> None:
        with self._lock:
            self._kept[work.claim.chunk_id, work.claim.attempt] = work

    def drop(self, work: Leased) -> None:
        with self._lock:
            self._kept.pop((work.claim.chunk_id, work.claim.attempt), None)

    def beat(self) -> None:
        """Extends each lease once."""
        with self._lock:
            kept = list(self._kept.values())
        for work in kept:
            self._extend(work)

    def _extend(self, work: Leased) -> None:
        try:
            if self.link.extend(work.claim, []).stop:
                work.asked_to_stop()
        except LeaseLostError:
            self.drop(work)
            work.lease_lost()
        except BatchLLMError as error:
            log.warning("could not extend the lease of chunk %d: %s", work.claim.chunk_id, error)

    def _run(self) -> None:
        while not self._over.wait(self.lease_seconds / BEATS_PER_LEASE):
            try:
                self.beat()
            except Exception:
                log.exception("a heartbeat broke off; the next one comes in time")
