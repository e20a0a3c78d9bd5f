"""A row that kills engines is found, ends as an error, and costs no other row anything but time."""

from __future__ import annotations

import asyncio

import pytest

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.suspects import BARREN_ATTEMPTS, ENGINE_DEATHS
from tests.conftest import RunningService
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


def _end_leases(service: RunningService) -> None:
    from sqlalchemy import update

    from airflow_batch_llm.store.tables import chunks

    with service.state.database.writing() as connection:
        connection.execute(update(chunks).where(chunks.c.state == "leased").values(lease_until=1.0))


async def test_workers_that_end_without_a_word_blame_no_row_until_it_is_the_last_one(bench: Bench) -> None:
    """Whatever kills a whole worker leaves no report. Every worker that touches row 7 dies."""
    batch_id = bench.submit(_texts(CHUNK_ROWS))
    worker = AnsweringWorker(bench.service, model=bench.engine.model, part_rows=100)
    while claimed := await asyncio.to_thread(worker.claim):
        claim, lines = claimed
        if any(line.row == 7 for line in lines):
            _end_leases(bench.service)
            continue
        if claim.condemned:
            condemned = claim
        record = await asyncio.to_thread(worker.store, claim, 0, lines)
        await asyncio.to_thread(worker.link.commit, claim, [record])
    assert [(row.row, row.code) for row in condemned.condemned] == [(7, "worker_lost")]
    assert condemned.only == [7]
    assert sum(chunk["attempt"] for chunk in bench.chunks(batch_id)) > 3 * BARREN_ATTEMPTS
    assert bench.service.assemble()
    ended = bench.get(batch_id)
    assert ended.status == BatchStatus.COMPLETED
    assert (ended.request_counts.completed, ended.request_counts.failed) == (CHUNK_ROWS - 1, 1)


@pytest.mark.parametrize("barren", [BARREN_ATTEMPTS - 1])
async def test_leases_that_run_out_a_few_times_cut_nothing(bench: Bench, barren: int) -> None:
    batch_id = bench.submit(CHUNK_ROWS)
    worker = AnsweringWorker(bench.service, model=bench.engine.model, part_rows=100)
    for _ in range(barren):
        assert await asyncio.to_thread(worker.claim)
        _end_leases(bench.service)
    claim, lines = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    assert claim.only is None
    assert len(lines) == CHUNK_ROWS
    assert len(bench.chunks(batch_id)) == 1
