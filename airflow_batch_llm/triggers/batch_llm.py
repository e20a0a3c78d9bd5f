"""Waits in the triggerer for a batch's end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_batch_llm import clock
from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.shared_watch import SharedWatch
from airflow_batch_llm.client.watch import Watch
from airflow_batch_llm.errors import ConflictError, RefusedError
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.progress_xcom import Tell, sent_by_trigger
from airflow_batch_llm.hooks.waiting import ended_batch
from airflow_batch_llm.wire import Batch

DEFERRED: Final = "deferred"
GOING_ON: Final = frozenset({DEFERRED, "scheduled", "queued", "running", "up_for_reschedule"})
"""States of a task that nobody ended: it waits, or comes back by itself."""
TELLS_OF_KILLS: Final = hasattr(BaseTrigger, "on_kill")
"""Whether Airflow tells a trigger that its task was ended: from 3.3 on."""
ENDINGS: Final[set[asyncio.Task[None]]] = set()
"""What goes on after its trigger; an event loop itself keeps no task alive."""
LOOKUP_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, *[60.0] * 9)
"""Seconds between tries to read a connection, or to cancel a batch: ten minutes in all."""
SETTLE: Final = timedelta(seconds=10)
"""Earliest event after the start: Airflow 3.3's scheduler fails a task that is back before it saw the task leave."""


class BatchLLMTrigger(BaseTrigger):
    """Gives one event when the batch has ended: ``{"batch_id", "status"}``, or ``{"batch_id", "error"}`` where the
    service refuses to tell. If ``gated``, also when the batch waits for the verdict on its first rows: its status is
    ``in_progress`` then, and the task waits again once it has judged them.

    Holds ids only, so nothing of a prompt and no token reaches Airflow's database. With ``cancel_on_kill`` it cancels
    the batch when a user fails, clears or skips the deferred task, provided that ``holder`` still holds the batch.
    Airflow tells a trigger so from 3.3 on. Before that the trigger looks at the task's state whenever it has to end.
    With ``progress_xcom`` the task's XCom ``progress`` says how far the batch is.

    With ``shared`` one request waits for the batches of all triggers of a triggerer and a connection, whose service
    must be ours. Else this one looks every ``poll_interval`` seconds by itself.
    """

    def __init__(
        self,
        conn_id: str,
        batch_id: str,
        holder: str | None = None,
        poll_interval: float = 5.0,
        *,
        cancel_on_kill: bool = False,
        progress_xcom: bool = False,
        shared: bool | None = None,
        gated: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.batch_id = batch_id
        self.holder = holder
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.progress_xcom = progress_xcom
        # A trigger that an older version stored does not say, but only our service has holders.
        self.shared = holder is not None if shared is None else shared
        self.gated = gated
        self._gave_event = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "airflow_batch_llm.triggers.batch_llm.BatchLLMTrigger",
            {
                "conn_id": self.conn_id,
                "batch_id": self.batch_id,
                "holder": self.holder,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "progress_xcom": self.progress_xcom,
                "shared": self.shared,
                "gated": self.gated,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event, and the end right after it: a trigger that went on would be taken for a killed one."""
        started = clock.now()
        with sent_by_trigger(self.task_instance if self.progress_xcom else None, self.log) as tell:
            event = await self._event(tell)
        await settle(started)
        self._gave_event = True
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Cancels the batch when a user ended the task, and leaves it alone when another triggerer took the task over.

        Airflow 3.3 calls this in both cases; while another triggerer has it, the task is still deferred. If the state
        cannot be read, nothing is cancelled.
        """
        if self.cancel_on_kill:
            await self._shielded_end(frozenset({DEFERRED}))

    async def cleanup(self) -> None:
        """Before Airflow 3.3, what :meth:`on_kill` is from then on; later nothing.

        Airflow calls this at every end of a trigger: after its event, when it died or its time was up (then the task
        goes on, and ends the batch itself), when the triggerer stops or loses the trigger to another one. So only a
        task that is seen to go on no more has its batch cancelled.
        """
        if self.cancel_on_kill and not (TELLS_OF_KILLS or self._gave_event or self.task_instance is None):
            await self._shielded_end(GOING_ON)

    async def _shielded_end(self, going_on: frozenset[str]) -> None:
        # Airflow cancels the caller anew with every look at its database, about once a second, and says nothing.
        ending = asyncio.create_task(self._end(going_on))
        ENDINGS.add(ending)
        ending.add_done_callback(ENDINGS.discard)
        await asyncio.shield(ending)

    async def _end(self, going_on: frozenset[str]) -> None:
        try:
            state = await self._task_state()
            if state == DEFERRED:
                self.log.info("The task is still deferred: batch %s goes on under another triggerer.", self.batch_id)
            elif state not in going_on:
                await self._cancel()
        except Exception:  # nobody is left to raise to
            self.log.warning("Batch %s was not cancelled and goes on.", self.batch_id, exc_info=True)

    async def _event(self, tell: Tell) -> dict[str, Any]:
        try:
            batch = await (self._watched(tell) if self.shared else self._looked_at(tell))
        except RefusedError as error:
            return {"batch_id": self.batch_id, "error": str(error)}
        return {"batch_id": self.batch_id, "status": batch.status.value}

    async def _watched(self, tell: Tell) -> Batch:
        """The batch once it ended, by the one request that waits for all batches of the connection."""
        watch = SharedWatch.of(self.conn_id, BatchLLMHook(self.conn_id).aget_conn)
        return await ended_batch(watch.snapshots(self.batch_id), self.log, tell, gated=self.gated)

    async def _looked_at(self, tell: Tell) -> Batch:
        """The batch once it ended, by looks of its own: other servers have nothing to wait for all of them with."""
        poll_interval = timedelta(seconds=self.poll_interval)
        async with await patient_client(self.conn_id, self.log) as client:
            snapshots = Watch(client, self.batch_id, poll_interval).snapshots()
            return await ended_batch(snapshots, self.log, tell, gated=self.gated)

    async def _task_state(self) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        ti = self.task_instance
        if ti is None:
            return None
        map_index = -1 if ti.map_index is None else ti.map_index
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=map_index
        )
        state: str | None = states.get(ti.run_id, {}).get(ti.task_id if map_index < 0 else f"{ti.task_id}_{map_index}")
        return state

    async def _cancel(self) -> None:
        """Cancels the batch, as soon as the service answers. Without a holder it is tried once: later it could hit the
        task's next try."""
        for pause in LOOKUP_PAUSES if self.holder is not None else ():
            try:
                await self._cancel_now()
            except RefusedError:
                raise
            except Exception as error:  # noqa: BLE001 (whatever it is, it may be over soon, and is raised in the end)
                self.log.warning(
                    "Batch %s is not cancelled yet: %s Trying again in %.0f s.", self.batch_id, error, pause
                )
                await asyncio.sleep(pause)
            else:
                return
        await self._cancel_now()

    async def _cancel_now(self) -> None:
        try:
            async with await BatchLLMHook(self.conn_id).aget_conn() as client:
                await client.cancel(self.batch_id, holder=self.holder)
        except ConflictError as error:
            self.log.info("Not cancelled: %s", error)
        else:
            self.log.info("The task was ended from outside: batch %s is being cancelled.", self.batch_id)


def check_serialises(trigger: BaseTrigger) -> None:
    """Raises TypeError unless ``trigger`` is made of plain JSON values, which every Airflow can store.

    Airflow finds out itself only when the task defers, when the batch already runs.
    """
    path, arguments = trigger.serialize()
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise TypeError(f"The task could not defer, so nothing was submitted: {path}: {error}.") from error


async def patient_client(conn_id: str, log: Any) -> AsyncBatchClient:
    """A client, once the connection can be read: to give up at once would end the task for a moment's trouble."""
    hook = BatchLLMHook(conn_id)
    for pause in LOOKUP_PAUSES:
        try:
            return await hook.aget_conn()
        except Exception as error:  # noqa: BLE001 (whatever it is, it may be over soon, and is raised in the end)
            log.warning("Connection %s cannot be used: %s Trying again in %.0f s.", conn_id, error, pause)
            await asyncio.sleep(pause)
    return await hook.aget_conn()


async def settle(started: datetime) -> None:
    """Waits until an event may be given by a trigger that ``started`` then."""
    left = started + SETTLE - clock.now()
    if left > timedelta(0):
        await asyncio.sleep(left.total_seconds())
