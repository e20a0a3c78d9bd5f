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
TRIES_PER_LEASE: Final = 15
"""How often a beat is tried that was not answered, beside the time that it may take itself."""


class Leased(Protocol):
    """What a heartbeat keeps: something claimed that can be told of its end."""

    claim: Claim

    def lease_lost(self) -> None:
        """The chunk is another's: drop it. Called from the heartbeat's threads."""

    def asked_to_stop(self) -> None:
        """The batch is ending: give the chunk back. Called from the heartbeat's threads."""


@dataclass
class Heartbeat:
    """Extends every lease it was given, three times as often as needed, each from a thread of its own.

    It does not wait for the engine or the event loop, so a slow engine never costs a lease; nor does one lease wait for
    the call of another. A beat that is not answered is tried again soon.
    """

    link: ServiceLink
    lease_seconds: float
    _kept: dict[tuple[int, int], _Beating] = field(default_factory=dict)
    """By chunk and attempt."""

    def keep(self, work: Leased) -> None:
        beating = _Beating(self.link, work, self.lease_seconds)
        self._kept[work.claim.chunk_id, work.claim.attempt] = beating
        beating.thread.start()

    def drop(self, work: Leased) -> None:
        """Says nothing more for it. Waits for no call, and what one still says harms nobody: it is fenced."""
        beating = self._kept.pop((work.claim.chunk_id, work.claim.attempt), None)
        if beating is not None:
            beating.over.set()

    def stop(self) -> None:
        for beating in list(self._kept.values()):
            self.drop(beating.work)


@dataclass
class _Beating:
    """One lease, and the thread that keeps it."""

    link: ServiceLink
    work: Leased
    lease_seconds: float
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def _run(self) -> None:
        answered = True
        while not self.over.wait(self.lease_seconds / (BEATS_PER_LEASE if answered else TRIES_PER_LEASE)):
            answered = self.beat()

    def beat(self) -> bool:
        """Extends the lease once; false where the service did not answer."""
        try:
            if self.link.extend(self.work.claim, []).stop:
                self.work.asked_to_stop()
        except LeaseLostError:
            self.over.set()
            self.work.lease_lost()
        except BatchLLMError as error:
            log.warning("could not extend the lease of chunk %d: %s", self.work.claim.chunk_id, error)
            return False
        except Exception:
            log.exception("a heartbeat of chunk %d broke off; the next one comes in time", self.work.claim.chunk_id)
        return True
