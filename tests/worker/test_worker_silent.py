"""Workers that end without a word: nobody says which row it was, and rows that were never asked are not blamed."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.suspects import BARREN_ATTEMPTS
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.base import StorageTroubleError
from tests.service.answering import AnsweringWorker
from tests.worker.conftest import CHUNK_ROWS, Bench


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    """The leases end when a test says so, however slow the machine is."""
    return dataclasses.replace(settings, lease_seconds=60.0)


async def test_workers_that_end_without_a_word_blame_no_row_until_it_is_the_last_one(bench: Bench) -> None:
    """Whatever kills a whole worker leaves no report. Every worker that touches row 7 dies."""
    batch_id = bench.submit(CHUNK_ROWS)
    worker = AnsweringWorker(bench.service, model=bench.engine.model, part_rows=100)
    while claimed := await asyncio.to_thread(worker.claim):
        claim, lines = claimed
        if any(line.row == 7 for line in lines):
            bench.service.end_leases()
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


async def test_leases_of_workers_that_never_got_a_row_blame_and_cut_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suspects of an engine's death are apart already, so a claim does not need the storage that is away."""
    batch_id = bench.submit(CHUNK_ROWS)
    worker = AnsweringWorker(bench.service, model=bench.engine.model, part_rows=100)
    claim, _ = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    await asyncio.to_thread(
        lambda: worker.link.release(claim, [], outcome="engine_died", in_flight=list(range(16)), rows_lost=16)
    )
    claim, _ = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    await asyncio.to_thread(lambda: worker.link.release(claim, [], outcome="drained"))
    with monkeypatch.context() as away:
        away.setattr(type(bench.service.state.storage), "open", _no_storage)
        for _ in range(2 * BARREN_ATTEMPTS + 2):
            for _ in range(2):
                claimed = await asyncio.to_thread(worker.link.claim, worker.worker_id)
                assert claimed is not None
                with pytest.raises(NoAnswerError):
                    await asyncio.to_thread(worker.link.rows, claimed)
            bench.service.end_leases()
    assert sorted(chunk["rows"] for chunk in bench.chunks(batch_id)) == [4, 16]
    await asyncio.to_thread(worker.work)
    assert bench.service.assemble()
    assert bench.get(batch_id).request_counts.completed == CHUNK_ROWS


def _no_storage(*_: object) -> None:
    raise StorageTroubleError("S3 answered 503 Slow Down")


async def test_a_worker_that_never_says_that_it_begins_loses_chunks_without_a_consequence(bench: Bench) -> None:
    batch_id = bench.submit(CHUNK_ROWS)
    worker = AnsweringWorker(bench.service, model=bench.engine.model, begins=False)
    for _ in range(3 * BARREN_ATTEMPTS):
        claim, lines = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
        assert len(lines) == CHUNK_ROWS
        bench.service.end_leases()
    claim, _ = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    await asyncio.to_thread(lambda: worker.link.release(claim, [], outcome="engine_died", in_flight=[7]))
    while claimed := await asyncio.to_thread(worker.claim):
        claim, lines = claimed
        if claim.alone and not claim.condemned:
            await asyncio.to_thread(lambda: worker.link.release(claim, [], outcome="engine_died", in_flight=[7]))  # noqa: B023
        else:
            record = await asyncio.to_thread(worker.store, claim, 0, lines)
            await asyncio.to_thread(worker.link.commit, claim, [record])
    assert bench.service.assemble()
    counts = bench.get(batch_id).request_counts
    assert (counts.completed, counts.failed) == (CHUNK_ROWS - 1, 1)


@pytest.mark.parametrize("barren", [BARREN_ATTEMPTS - 1])
async def test_leases_that_run_out_a_few_times_cut_nothing(bench: Bench, barren: int) -> None:
    batch_id = bench.submit(CHUNK_ROWS)
    worker = AnsweringWorker(bench.service, model=bench.engine.model, part_rows=100)
    for _ in range(barren):
        assert await asyncio.to_thread(worker.claim)
        bench.service.end_leases()
    claim, lines = await asyncio.to_thread(worker.claim) or pytest.fail("nothing to claim")
    assert claim.only is None
    assert len(lines) == CHUNK_ROWS
    assert len(bench.chunks(batch_id)) == 1
