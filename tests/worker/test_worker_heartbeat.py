"""A lease is kept though a call hangs: each has a thread of its own, and no call that keeps one may take as long."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from airflow_batch_llm.client import replicas
from airflow_batch_llm.errors import LeaseLostError, NoAnswerError
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.worker.heartbeat import BEATS_PER_LEASE, TRIES_PER_LEASE, Heartbeat, _Beating
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker_wire import Claim, Extended, PartRecord
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.worker.conftest import Bench

LEASE = 60.0


def _claim(chunk_id: int = 1, lease_seconds: float = LEASE) -> Claim:
    return Claim(
        chunk_id=chunk_id, attempt=1, batch_id="b", model="m", endpoint=CHAT_COMPLETIONS, rows=1, rows_url="",
        sha256="", parts_url="", done=[], parameters={}, lease_seconds=lease_seconds,
    )  # fmt: skip


class Kept:
    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.told: list[str] = []

    def lease_lost(self) -> None:
        self.told.append("lost")

    def asked_to_stop(self) -> None:
        self.told.append("stop")


class Waits(threading.Event):
    """An event that notes how long it is waited for, and comes after so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._times = times

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return self.is_set() or len(self.seconds) > self._times


def _answering(link: ServiceLink, *answers: Extended | Exception) -> ServiceLink:
    left = list(answers)

    def extend(claim: Claim, parts: list[PartRecord]) -> Extended:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    link.extend = extend  # type: ignore[method-assign]
    return link


@pytest.fixture
def link() -> Iterator[ServiceLink]:
    made = ServiceLink("http://127.0.0.1:9", "t")
    yield made
    made.close()


GOES_ON = Extended(lease_seconds=LEASE, stop=False)


def test_a_beat_that_got_no_answer_is_tried_again_soon(link: ServiceLink) -> None:
    waits = Waits(3)
    beating = _Beating(_answering(link, GOES_ON, NoAnswerError("hangs"), GOES_ON), Kept(_claim()), LEASE, waits)
    beating._run()
    often, soon = LEASE / BEATS_PER_LEASE, LEASE / TRIES_PER_LEASE
    assert waits.seconds == [often, often, soon, often]


def test_a_beat_that_is_told_of_another_holder_is_the_last(link: ServiceLink) -> None:
    kept, waits = Kept(_claim()), Waits(9)
    _Beating(_answering(link, GOES_ON, LeaseLostError(1, 1)), kept, LEASE, waits)._run()
    assert kept.told == ["lost"]
    assert len(waits.seconds) == 3


def test_a_hanging_call_for_one_chunk_holds_up_no_other_chunk(link: ServiceLink) -> None:
    hangs, beaten = threading.Event(), threading.Event()

    def extend(claim: Claim, parts: list[PartRecord]) -> Extended:
        if claim.chunk_id == 1:
            assert hangs.wait(20)
        else:
            beaten.set()
        return GOES_ON

    link.extend = extend  # type: ignore[method-assign]
    heart = Heartbeat(link, 0.03)
    for chunk_id in (1, 2):
        heart.keep(Kept(_claim(chunk_id)))
    assert beaten.wait(10)
    hangs.set()
    heart.stop()


@pytest.fixture
def frozen() -> Iterator[str]:
    """The address of a service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_a_service_that_is_frozen_costs_no_lease_where_another_one_answers(
    bench: Bench, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas.random, "randrange", lambda count: 0)
    service: RunningService = bench.service
    bench.submit(5)
    worker = AnsweringWorker(service, model=bench.engine.model)
    claim, _ = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    link = ServiceLink(f"{frozen},{service.url}", service.token)
    assert (await asyncio.to_thread(link.extend, claim, [])).stop is False
    link.close()


@pytest.mark.parametrize("verb", ["extend", "begin"])
def test_two_addresses_that_hang_leave_time_for_a_third_within_a_lease(link: ServiceLink, verb: str) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(
            200, json={"lease_seconds": LEASE, "stop": False, **({"wait": False} if verb == "begin" else {})}
        )

    link._http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://service")
    if verb == "extend":
        link.extend(_claim(), [])
    else:
        link.begin(_claim())
    timeout = asked[0].extensions["timeout"]
    between_beats = LEASE / BEATS_PER_LEASE
    assert all(between_beats + 2 * timeout[part] < LEASE for part in ("connect", "read", "write", "pool"))
