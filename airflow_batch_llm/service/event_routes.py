"""What happens to batches, without asking again and again: ``/v1/batches/{id}/events`` and ``/v1/batches/watch``.

What is derived at the time of a look (rates, the time left, which workers serve) makes no event by itself.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Annotated, Final

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.access import Reader, State
from airflow_batch_llm.service.changes import Changes, Watch
from airflow_batch_llm.service.connected import while_connected
from airflow_batch_llm.service.problems import problems
from airflow_batch_llm.service.showing import as_batches
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.changes import status_in
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.wire import MOST_CHANGED, BatchChangeList, BatchWatch, ChangedBatch

STILL_WATCHED_SECONDS: Final = 30.0
"""How often it is noted that a batch is watched whose events somebody waits for."""

router: Final = APIRouter()


def service_changes(request: Request) -> Changes:
    changes: Changes = request.app.state.changes
    return changes


def existing_batch(state: State, team: Reader, batch_id: str) -> str:
    """The id of a batch of the caller's; refused here, where a stream has not begun to answer yet."""
    return str(state.batches.get(team, batch_id)["id"])


WatchedChanges = Annotated[Changes, Depends(service_changes)]
ExistingBatch = Annotated[str, Depends(existing_batch)]


@router.post("/v1/batches/watch", responses=problems(400, 401, 503))
async def watch_batches(
    state: State, team: Reader, changes: WatchedChanges, request: Request, body: BatchWatch
) -> BatchChangeList:
    """The batches that differ from what the caller saw: at once if there are any, else as soon as there are."""
    await anyio.to_thread.run_sync(state.watching.saw, team, body.batches)
    watch = Watch(team, body.batches, status_only=body.changes == "status")
    answer = await anyio.to_thread.run_sync(_answer, state, changes, watch)
    if body.wait and not answer.changed and not answer.gone:
        await while_connected(request, changes.wait(watch, body.wait))
        answer = await anyio.to_thread.run_sync(_answer, state, changes, watch)
    return answer


@router.get("/v1/batches/{batch_id}/events", response_class=EventSourceResponse, responses=problems(400, 401, 404, 503))
async def batch_events(
    state: State,
    team: Reader,
    changes: WatchedChanges,
    batch_id: ExistingBatch,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """The batch as it is and again after every change, as Server-Sent Events named ``batch``, until it has ended.

    Leaves the first one out where ``Last-Event-ID`` says that the caller has it.
    """
    seen = last_event_id
    while not changes.over:
        try:
            await anyio.to_thread.run_sync(state.watching.saw, team, [batch_id])
            read = await anyio.to_thread.run_sync(_read, state, changes, team, [batch_id])
        except StoreTroubleError:
            await changes.wait(Watch(team, {batch_id: None}))  # until the store is back
            continue
        for changed in read:
            if changed.version != seen:
                yield ServerSentEvent(event="batch", id=changed.version, data=changed.batch)
            seen = changed.version
        if all(changed.batch.status.ended for changed in read):  # also where it is not there any more
            return
        await changes.wait(Watch(team, {batch_id: seen}), STILL_WATCHED_SECONDS)


def _answer(state: ServiceState, changes: Changes, watch: Watch) -> BatchChangeList:
    watch, found = changes.look(watch)
    changed = watch.changed(found)
    chosen = sorted(changed, key=lambda batch_id: _turn(changed[batch_id]))[:MOST_CHANGED]
    return BatchChangeList(
        changed=_read(state, changes, watch.team, chosen),
        gone=watch.gone(found),
        has_more=len(changed) > len(chosen),
    )


def _turn(version: str) -> tuple[bool, float]:
    """Ended batches first, the others by chance, so that those that change all the time keep none from being told."""
    return not BatchStatus(status_in(version)).ended, random.random()  # noqa: S311 (a lot, not a secret)


def _read(state: ServiceState, changes: Changes, team: str, batch_ids: list[str]) -> list[ChangedBatch]:
    read = changes.batches.records(team, batch_ids)
    shown = as_batches(state, [record for _, record in read], state.workers.served(team))
    return [ChangedBatch(version=version, batch=batch) for (version, _), batch in zip(read, shown, strict=True)]
