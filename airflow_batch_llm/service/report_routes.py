"""``/v1/batches/{id}/report``: one batch's story, for a page that shows it as it goes on.

It is no look at the batch: a person who reads it keeps no batch going that nobody waits for.
"""

from __future__ import annotations

import time
from typing import Annotated, Final, Literal

import anyio.to_thread
from anyio import sleep
from fastapi import APIRouter, Query, Request
from starlette.requests import ClientDisconnect

from airflow_batch_llm.page_wire import BatchReport, WaitSeconds
from airflow_batch_llm.service.access import Reading, State
from airflow_batch_llm.service.changes import Changes, Watch
from airflow_batch_llm.service.connected import while_connected
from airflow_batch_llm.service.event_routes import ExistingBatch, WatchedChanges
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.reporting import batch_report, batch_version_in
from airflow_batch_llm.wire import Version

LEAST_SECONDS: Final = 1.0
"""Between two answers to one who waits for each: a batch of many workers changes all the time."""

router: Final = APIRouter()


@router.get("/v1/batches/{batch_id}/report", responses=problems(400, 401, 404, 503))
async def report_on_batch(
    state: State,
    access: Reading,
    changes: WatchedChanges,
    request: Request,
    batch_id: ExistingBatch,
    version: Annotated[Version | None, Query(description="Of the report that the caller has.")] = None,
    wait: Annotated[WaitSeconds, Query(description="Seconds to wait for another than that one.")] = 0.0,
) -> BatchReport:
    """One batch with its phases, its timeline, its plan, its workers, its attempts, its cost and who did what with it.

    With ``version`` and ``wait`` it answers once the batch itself has changed, a second after the call at the soonest.
    What else is new, such as a chunk that was claimed or a rate that fell, is found when the wait ends.
    """
    if version is not None and wait:
        watch = Watch(access.team, {batch_id: batch_version_in(version)})
        if await while_connected(request, _next_turn(changes, watch, wait)) is None:
            raise ClientDisconnect
    return await anyio.to_thread.run_sync(lambda: batch_report(state, changes.batches, access, batch_id, seen=version))


async def _next_turn(changes: Changes, watch: Watch, wait: float) -> Literal[True]:
    soonest = time.monotonic() + min(wait, LEAST_SECONDS)
    await changes.wait(watch, wait)
    if not changes.over:
        await sleep(max(0.0, soonest - time.monotonic()))
    return True
