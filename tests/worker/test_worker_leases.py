"""Drains, cancels, lost leases, a service or an engine that is away: no row is lost and none is doubled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator

import pytest
import uvicorn

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.models import CHAT_COMPLETIONS, BatchStatus
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.chunks import ChunkLease
from airflow_batch_llm.store.pools import Pool
from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.runner import Runner
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker.work import ChunkWork
from airflow_batch_llm.worker_wire import Claim, Registered, Registration, RowLine, ServedModel
from tests.conftest import RunningService, eventually
from tests.worker.conftest import CHUNK_ROWS, Bench, soon


async def test_a_drain_loses_nothing_finished_and_a_second_worker_asks_only_for_what_was_in_flight(
    bench: Bench,
) -> None:
    batch_id = bench.submit(5 * CHUNK_ROWS)
    bench.engine.delay = 0.05
    bench.engine.held = {12, 13}
    async with bench.worker(drain_seconds=0.5) as worker:
        await soon(lambda: bench.engine.answered >= 30)
        await worker.drained()
    assert bench.get(batch_id).progress.rows_done == bench.engine.answered < 5 * CHUNK_ROWS
    assert {chunk["state"] for chunk in bench.chunks(batch_id)} <= {"done", "pending"}
    bench.engine.let_go()
    async with bench.worker():
        await bench.completed(batch_id)
    assert bench.engine.rows_asked_twice == {(batch_id, 12): 2, (batch_id, 13): 2}


async def test_a_drain_lets_the_rows_in_flight_finish(bench: Bench) -> None:
    bench.engine.held = None
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker(max_num_seqs=4) as worker:
        await soon(lambda: bench.engine.in_flight == 8)
        worker.runner.drain()
        bench.engine.let_go()
        await worker.drained()
    assert bench.engine.answered == 8 == bench.get(batch_id).progress.rows_done


async def test_an_engine_that_ends_with_its_worker_blames_no_row(bench: Bench) -> None:
    """Both get the signal where it is sent to all processes of a unit or a job."""
    bench.engine.held = None
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker(max_num_seqs=4) as worker:
        await soon(lambda: bench.engine.in_flight == 8)
        bench.engine.healthy = False
        worker.runner.drain()
        bench.engine.let_go()
        await worker.drained()
    [attempt], [chunk] = bench.attempts(batch_id), bench.chunks(batch_id)
    assert (attempt["outcome"], attempt["rows"]) == ("drained", 0)
    assert (chunk["state"], chunk["suspects"], chunk["deaths"]) == ("pending", None, None)


async def test_a_worker_that_drained_no_longer_serves_its_model(bench: Bench) -> None:
    async with bench.worker() as worker:
        await soon(lambda: bench.service.client.models().data)
        await worker.drained()
        assert bench.service.client.models().data == []


async def test_a_worker_drains_before_its_engine_is_up(bench: Bench) -> None:
    bench.engine.healthy = False
    async with bench.worker() as worker:
        await soon(lambda: bench.engine.looks)
        await worker.drained(seconds=5.0)
    assert bench.service.client.models().data == []


async def test_a_worker_that_is_asked_to_end_while_it_registers_does_not_count_as_serving(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = ServiceLink.register

    def slow(link: ServiceLink, registration: Registration) -> Registered:
        answer = register(link, registration)
        time.sleep(0.5)
        return answer

    monkeypatch.setattr(ServiceLink, "register", slow)
    async with bench.worker() as worker:
        await soon(lambda: bench.service.client.models().data)
        await worker.drained()
        assert bench.service.client.models().data == []


async def test_a_cancel_stops_the_rows_in_flight_at_once_and_keeps_what_was_done(bench: Bench) -> None:
    batch_id = bench.submit(5 * CHUNK_ROWS)
    bench.engine.held = set(range(30, 5 * CHUNK_ROWS))
    async with bench.worker():
        await soon(lambda: bench.get(batch_id).progress.rows_done == 30)
        began = time.monotonic()
        bench.service.client.cancel(batch_id)
        await soon(lambda: bench.engine.in_flight == 0)
        await soon(lambda: bench.get(batch_id).finalizing_at)
        assert time.monotonic() - began < bench.service.settings.lease_seconds
        rows = bench.assembled(batch_id, BatchStatus.CANCELLED)
    assert [row["llm_status"] for row in rows] == ["success"] * 30 + ["cancelled"] * 70
    assert bench.engine.rows_asked_twice == {}


async def test_after_a_cancel_the_whole_window_is_free_for_the_next_batch(bench: Bench) -> None:
    bench.engine.held = None
    first = bench.submit(CHUNK_ROWS, name="first")
    async with bench.worker(max_num_seqs=4):
        await soon(lambda: bench.engine.in_flight == 8)
        bench.service.client.cancel(first)
        await soon(lambda: bench.engine.in_flight == 0)
        second = bench.submit(CHUNK_ROWS, name="second")
        await soon(lambda: bench.engine.in_flight == 8)
        bench.engine.let_go()
        await bench.answered(second)


async def test_a_row_that_is_taken_back_before_it_was_sent_frees_its_slot(bench: Bench) -> None:
    claim = Claim(
        chunk_id=1, attempt=1, batch_id="b", model="fake", endpoint=CHAT_COMPLETIONS, rows=2, rows_url="", sha256="",
        parts_url="", done=[], parameters={}, lease_seconds=1.0,
    )  # fmt: skip
    async with bench.worker(max_num_seqs=1) as worker:
        await soon(lambda: bench.service.client.models().data)
        runner: Runner = worker.runner
        work = ChunkWork(
            claim, AnswerCheck(), deque(RowLine(row, {"messages": []}) for row in range(2)), asyncio.get_running_loop()
        )
        work.begun = True
        await runner._send_next(work)
        await runner._send_next(work)
        assert runner._window.locked()
        tasks = list(work.in_flight.values())
        work.abort_in_flight()
        await asyncio.wait(tasks)
        assert not runner._window.locked()
        assert sorted(line.row for line in work.todo) == [0, 1]
        assert work.in_flight == {}
    assert bench.engine.asked == {}


def _claimed_by_another(bench: Bench) -> ChunkLease:
    state = bench.service.state
    served = ServedModel(model="fake", endpoint=CHAT_COMPLETIONS)
    other = state.workers.register(
        Pool("default", all_teams=True), Registration(name="other", version="0", models=[served])
    )
    chunk = state.chunks.claim(other, lease_seconds=60.0)
    assert chunk is not None
    return ChunkLease(chunk["id"], chunk["attempt"])


async def test_a_worker_whose_lease_was_lost_drops_the_chunk_and_writes_nothing(bench: Bench) -> None:
    bench.engine.held = set(range(10, CHUNK_ROWS))
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker(max_num_seqs=2):  # a window of 4, so rows are left to send and it claims nothing
        await soon(lambda: bench.get(batch_id).progress.rows_done == 10)
        before = bench.parts(batch_id)
        bench.service.end_leases()
        lease = _claimed_by_another(bench)
        assert lease.attempt == 2
        await soon(lambda: bench.engine.in_flight == 0, what="the worker takes its rows back")
        bench.engine.let_go()
        assert bench.parts(batch_id) == before
        assert bench.chunks(batch_id)[0]["attempt"] == 2
        bench.service.state.chunks.release(lease, [], outcome="drained", detail=None, rows_lost=0)
        await bench.completed(batch_id)
    assert [attempt["outcome"] for attempt in bench.attempts(batch_id)] == ["lease_lost", "drained", "committed"]
    assert all(bench.engine.asked[batch_id, row] == 1 for row in range(10))


async def test_a_worker_that_gets_its_own_lost_chunk_again_keeps_the_new_lease(bench: Bench) -> None:
    bench.engine.held = {5}
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker(max_num_seqs=CHUNK_ROWS):
        await soon(lambda: bench.get(batch_id).progress.rows_done == CHUNK_ROWS - 1)
        bench.service.end_leases()
        await soon(lambda: bench.chunks(batch_id)[0]["attempt"] == 2)
        await soon(lambda: bench.engine.asked[batch_id, 5] == 2)
        await soon(lambda: bench.engine.in_flight == 1, what="the first attempt takes its row back")
        until = bench.chunks(batch_id)[0]["lease_until"]
        await soon(lambda: bench.chunks(batch_id)[0]["lease_until"] > until + 1.0, what="the new lease is extended")
        assert bench.chunks(batch_id)[0]["attempt"] == 2
        bench.engine.let_go()
        await bench.completed(batch_id)
    assert bench.engine.rows_asked_twice == {(batch_id, 5): 2}


async def test_a_hanging_engine_costs_no_lease(bench: Bench) -> None:
    bench.engine.held = None
    batch_id = bench.submit(5)
    async with bench.worker():
        await soon(lambda: bench.engine.in_flight == 5)
        until = bench.chunks(batch_id)[0]["lease_until"]
        await soon(lambda: bench.chunks(batch_id)[0]["lease_until"] > until + 1.0, what="the lease is extended")
        bench.engine.let_go()
        await bench.completed(batch_id)
    assert [attempt["attempt"] for attempt in bench.attempts(batch_id)] == [1]
    assert bench.engine.rows_asked_twice == {}


async def test_a_worker_that_the_service_does_not_know_any_more_registers_again(bench: Bench) -> None:
    async with bench.worker() as worker:
        known = await soon(lambda: worker.runner._worker_id)
        bench.service.state.workers.saw(Pool("default", all_teams=True), known, gone=True)
        batch_id = bench.submit(5)
        await bench.completed(batch_id)
        assert worker.runner._worker_id != known


async def test_a_dying_endpoint_is_charged_to_no_row(bench: Bench) -> None:
    bench.engine.held = set(range(10, CHUNK_ROWS))
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker():
        await soon(lambda: bench.get(batch_id).progress.rows_done == 10)
        bench.engine.healthy = False
        bench.engine.let_go()
        await soon(lambda: bench.chunks(batch_id)[0]["state"] == "pending")
        asked = sum(bench.engine.asked.values())
        bench.engine.healthy = True
        rows = await bench.completed(batch_id)
    assert {row["llm_status"] for row in rows} == {"success"}
    first, *_, last = bench.attempts(batch_id)
    assert (first["outcome"], first["rows"], first["rows_lost"]) == ("engine_died", 10, 10)
    assert (last["outcome"], last["rows"]) == ("committed", 10)
    assert asked <= CHUNK_ROWS + 20, "a dead engine is not asked in a tight loop"
    assert all(bench.engine.asked[batch_id, row] == 1 for row in range(10))


class Server:
    """The service on its port, to be stopped and started."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self._state), host="127.0.0.1", port=self._state.settings.port, log_level="warning"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def server(state: ServiceState) -> Server:
    return Server(state)


@pytest.fixture
def service(server: Server, state: ServiceState) -> Iterator[RunningService]:
    """Like the shared one, but its server can be stopped by the test."""
    server.start()
    token = state.settings.token_path.read_text().strip()
    with BatchClient(f"http://127.0.0.1:{state.settings.port}", token) as client:
        yield RunningService(state.settings, state, token, client)
    server.stop()


async def test_a_service_that_is_away_for_a_while_costs_nothing(
    bench: Bench, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.held = set(range(10, CHUNK_ROWS))
    batch_id = bench.submit(2 * CHUNK_ROWS)
    async with bench.worker(max_num_seqs=CHUNK_ROWS):
        await soon(lambda: bench.engine.in_flight == 10)
        await asyncio.to_thread(server.stop)
        bench.engine.let_go()
        await soon(lambda: "is delivered again" in caplog.text)
        server.start()
        await bench.completed(batch_id)
    assert bench.engine.rows_asked_twice == {}


async def test_a_worker_waits_for_a_service_that_is_not_there_yet(bench: Bench, server: Server) -> None:
    server.stop()
    async with bench.worker() as worker:
        await soon(lambda: worker.runner.watch.up.is_set())
        assert not worker.task.done()
        server.start()
        await soon(lambda: bench.service.client.models().data)


async def test_a_drain_ends_although_the_service_is_away(bench: Bench, server: Server) -> None:
    bench.engine.held = None
    bench.submit(5)
    async with bench.worker(drain_seconds=0.5) as worker:
        await soon(lambda: bench.engine.in_flight == 5)
        await asyncio.to_thread(server.stop)
        bench.engine.let_go()
        await soon(lambda: bench.engine.answered == 5)
        await worker.drained(seconds=8.0)
    server.start()


async def test_a_worker_that_must_register_again_drains_although_the_service_is_away(
    bench: Bench, server: Server
) -> None:
    async with bench.worker(drain_seconds=0.5) as worker:
        await soon(lambda: bench.service.client.models().data)
        await asyncio.to_thread(server.stop)
        registering = asyncio.create_task(worker.runner._register())
        await worker.drained(seconds=8.0)
        async with asyncio.timeout(8.0):
            await registering
    server.start()


async def test_a_worker_on_an_endpoint_waits_until_it_serves_the_model(bench: Bench) -> None:
    bench.engine.healthy = False
    async with bench.worker():
        await soon(lambda: bench.engine.looks)
        assert bench.service.client.models().data == []
        bench.engine.healthy = True
        await soon(lambda: bench.service.client.models().data)
