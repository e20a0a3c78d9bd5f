"""A row that kills engines is found, ends as an error, and costs no other row anything but time."""

from __future__ import annotations

import asyncio

import pytest

from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.suspects import BARREN_ATTEMPTS, ENGINE_DEATHS
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker_wire import Claim
from tests.service.answering import AnsweringWorker
from tests.worker.conftest import CHUNK_ROWS, Bench, soon

POISON = "poison"


def _texts(rows: int, *poison: int) -> list[str]:
    return [f"row {row:05d}{' ' + POISON if row in poison else ''}" for row in range(rows)]


async def test_a_row_that_kills_engines_ends_as_an_error_and_no_other_is_blamed(bench: Bench) -> None:
    bench.engine.deadly_word = POISON
    bench.engine.delay = 0.05
    batch_id = bench.submit(_texts(3 * CHUNK_ROWS, 25))
    async with bench.worker():
        rows = await bench.completed(batch_id, seconds=30)
    [failed] = [row for row in rows if row["llm_status"] != "success"]
    assert (failed["text"], failed["llm_status"]) == ("row 00025 poison", "error")
    assert failed["llm_error"].startswith(
        f"engine_died: The engine died of this row: {ENGINE_DEATHS} times while it had it alone."
    )
    assert bench.engine.deaths == 1 + ENGINE_DEATHS
    assert bench.engine.beside[0] > 0
    assert bench.engine.beside[1:] == [0] * ENGINE_DEATHS
    counts = bench.get(batch_id).request_counts
    assert (counts.total, counts.completed, counts.failed) == (60, 59, 1)
    assert sum(chunk["rows"] for chunk in bench.chunks(batch_id)) == 60


async def test_several_poisoned_rows_of_one_chunk_are_each_found(bench: Bench) -> None:
    bench.engine.deadly_word = POISON
    batch_id = bench.submit(_texts(CHUNK_ROWS, 3, 4, 17))
    async with bench.worker():
        rows = await bench.completed(batch_id, seconds=40)
    assert [number for number, row in enumerate(rows) if row["llm_status"] != "success"] == [3, 4, 17]


async def test_rows_that_were_only_beside_a_death_are_answered_alone(bench: Bench) -> None:
    """The engine died once, of nothing that is in the rows."""
    bench.engine.held = None
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker():
        await soon(lambda: bench.engine.in_flight == 16)
        bench.engine.healthy = False
        bench.engine.let_go()
        await soon(lambda: bench.engine.in_flight == 0)
        bench.engine.healthy = True
        bench.engine.most_in_flight = 0
        bench.engine.delay = 0.01
        rows = await bench.completed(batch_id)
    assert {row["llm_status"] for row in rows} == {"success"}
    alone, together = sorted(bench.chunks(batch_id), key=lambda chunk: not chunk["alone"])
    assert (alone["rows"], together["rows"]) == (16, 4)


async def test_a_row_that_must_be_alone_meets_no_row_of_another_batch(bench: Bench) -> None:
    bench.engine.deadly_word = POISON
    bench.engine.delay = 0.03
    poisoned = bench.submit(_texts(CHUNK_ROWS, 5), name="poisoned")
    other = bench.submit(6 * CHUNK_ROWS, name="other")
    async with bench.worker():
        await bench.answered(poisoned, seconds=40)
        await bench.answered(other, seconds=40)
    assert bench.engine.beside[1:] == [0] * ENGINE_DEATHS
    bench.service.assemble()
    bench.service.assemble()
    assert bench.get(other).request_counts.failed == 0
    assert bench.get(poisoned).request_counts.failed == 1


async def test_a_batch_with_a_poisoned_row_can_be_cancelled_in_the_middle(bench: Bench) -> None:
    bench.engine.deadly_word = POISON
    batch_id = bench.submit(_texts(2 * CHUNK_ROWS, 5))
    async with bench.worker():
        await soon(lambda: bench.engine.deaths == 2)
        bench.service.client.cancel(batch_id)
        await soon(lambda: not any(chunk["state"] == "leased" for chunk in bench.chunks(batch_id)))
        bench.service.state.life.settle_ending()
        rows = bench.assembled(batch_id, BatchStatus.CANCELLED)
        await asyncio.sleep(0)
    assert {row["llm_status"] for row in rows} <= {"success", "cancelled"}


async def test_two_workers_at_one_server_blame_no_row_that_is_only_there_when_it_dies(bench: Bench) -> None:
    """Each asks for rows that must be alone; so nothing of the other's is there meanwhile."""
    bench.engine.deadly_word = POISON
    bench.engine.delay = 0.05
    batch_id = bench.submit(_texts(2 * CHUNK_ROWS, 3))
    async with bench.worker(name="one"), bench.worker(name="other"):
        rows = await bench.completed(batch_id, seconds=60)
    [failed] = [row for row in rows if row["llm_status"] != "success"]
    assert failed["text"] == "row 00003 poison"
    assert bench.engine.beside[1:] == [0] * ENGINE_DEATHS


async def test_a_storage_that_comes_back_at_once_costs_no_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bench.submit(5)
    rows = ServiceLink.rows
    asked: list[int] = []

    def away_once(link: ServiceLink, claim: Claim) -> bytes:
        asked.append(claim.attempt)
        if len(asked) == 1:
            raise NoAnswerError("S3 answered 503 Slow Down")
        return rows(link, claim)

    monkeypatch.setattr(ServiceLink, "rows", away_once)
    async with bench.worker():
        await bench.completed(batch_id)
    first, second = asked
    assert first == second


async def test_a_row_that_was_not_with_the_engine_when_it_died_is_not_given_up_however_often_it_does(
    bench: Bench,
) -> None:
    bench.submit(1)
    worker = AnsweringWorker(bench.service, model=bench.engine.model)
    for _ in range(3 * BARREN_ATTEMPTS):
        claim, _ = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
        assert not claim.condemned
        await asyncio.to_thread(lambda: worker.link.release(claim, [], outcome="engine_died", in_flight=[]))  # noqa: B023
