"""Rows that workers were lost with are asked alone, and only the one that was there each time is given up."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import pairwise

import pytest

from airflow_batch_llm.service.suspects import BARREN_ATTEMPTS
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.worker_wire import Claim
from tests.service.answering import AnsweringWorker
from tests.worker.conftest import Bench


@pytest.fixture
def settings(settings: ServiceSettings) -> ServiceSettings:
    return dataclasses.replace(settings, chunk_rows=1, lease_seconds=60.0)


async def _claims(worker: AnsweringWorker) -> list[Claim]:
    """All that there are, in their order."""
    claims = []
    while claimed := await asyncio.to_thread(worker.claim):
        claims.append(claimed[0])
    return sorted(claims, key=lambda claim: claim.chunk_id)


async def _lost_alone(bench: Bench, *texts: str) -> str:
    """A batch of one chunk for each text, with which so many workers were lost that it is to be asked alone."""
    batch_id = bench.submit(texts)
    worker = AnsweringWorker(bench.service, model=bench.engine.model)
    for _ in range(BARREN_ATTEMPTS):
        await _claims(worker)
        bench.service.end_leases()
    worker.begins = False
    assert [claim.alone for claim in await _claims(worker)] == [True] * len(texts)
    bench.service.end_leases()
    return batch_id


async def test_a_row_that_waits_while_its_workers_end_of_another_is_not_given_up(bench: Bench) -> None:
    """Each worker has the chunks of both, and comes no further than the first row, which ends it."""
    await _lost_alone(bench, "ends its workers", "innocent")
    worker = AnsweringWorker(bench.service, model=bench.engine.model, begins=False)
    for _ in range(BARREN_ATTEMPTS):
        first, second = await _claims(worker)
        assert first.condemned == second.condemned == []
        await asyncio.to_thread(worker.link.begin, first)
        bench.service.end_leases()
    first, second = await _claims(worker)
    assert [(row.row, row.code) for row in first.condemned] == [(0, "worker_lost")]
    assert second.condemned == []


async def test_a_worker_with_a_row_that_must_be_alone_claims_nothing_beside_it(bench: Bench) -> None:
    bench.engine.delay = 0.05
    batch_id = await _lost_alone(bench, "a", "b", "c")
    async with bench.worker(claim_seconds=0.01):
        rows = await bench.completed(batch_id)
    assert {row["llm_status"] for row in rows} == {"success"}
    assert bench.engine.most_in_flight == 1
    ends = [(attempt["claimed_at"], attempt["ended_at"]) for attempt in bench.attempts(batch_id) if attempt["rows"]]
    assert len(ends) == 3
    for (_, ended), (claimed, _) in pairwise(sorted(ends)):
        assert ended <= claimed
