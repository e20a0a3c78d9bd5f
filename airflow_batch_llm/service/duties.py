"""One round of a duty: plan or assemble one batch, under a lease, so that any process may die at any point."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import BatchStatus, DutyKind
from airflow_batch_llm.service.duty_context import DutyContext
from airflow_batch_llm.service.file_duties import assemble_files, plan_file
from airflow_batch_llm.service.request_file import RequestFileInvalidError
from airflow_batch_llm.service.table_duties import ENDING_SECONDS, assemble_table, may_stand, plan_table
from airflow_batch_llm.service.targets import TargetTakenError
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.store.duties import Duty, DutyLostError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 10.0
"""How long a duty that met trouble (a full disk, a target that was taken) waits before it is tried again."""
CANCELLED_TRIES: Final = 3
"""How often the target of a cancelled batch is tried: what a storage that was away for a moment costs is no target."""
MOST_LOSSES: Final = 5
"""How many processes may end while they plan a batch: more, and it is the batch that ends."""


@dataclass
class DutyRunner:
    """Does the duties of one kind, one batch at a time."""

    kind: DutyKind
    holder: str
    context: DutyContext

    def run_once(self) -> bool:
        """Does the next due duty, if there is one; gives whether there was."""
        lease_seconds = self.context.settings.duty_lease_seconds
        if not self.context.duties.due(self.kind):
            return False
        duty = self.context.duties.claim(self.kind, holder=self.holder, lease_seconds=lease_seconds)
        if duty is None:
            return False
        log.info("claimed %s of %s, attempt %d", duty.kind, duty.batch_id, duty.attempt)
        if duty.losses > 1:
            self.context.duties.say(duty, f"{_lost(duty)} It is tried again, after those of other batches.")
        with self._heartbeat(duty, lease_seconds):
            self._do(duty)
        return True

    def _do(self, duty: Duty) -> None:
        try:
            self._do_for(duty, self.context.life.for_duty(duty))
        except DutyLostError as error:
            log.info("dropped %s of %s: %s", duty.kind, duty.batch_id, error)
            self.context.duties.put_off(duty, seconds=0.0)

    def _do_for(self, duty: Duty, batch: Mapping[str, Any]) -> None:
        try:
            if self.kind == DutyKind.PLAN:
                self._plan(duty, batch)
            elif batch["dataset"] is None:
                assemble_files(self.context, duty, batch)
            else:
                assemble_table(self.context, duty, batch)
        except DutyLostError:
            raise
        except Exception as error:  # whatever it is, its batch must say so, and the others must go on
            log.exception("put off %s of %s", duty.kind, duty.batch_id)
            self._put_off(duty, batch, error)

    def _plan(self, duty: Duty, batch: Mapping[str, Any]) -> None:
        prefix = f"batches/{duty.batch_id}/plan-{duty.attempt}"
        stage = plan_file if batch["dataset"] is None else plan_table
        if (ending := self.context.life.still_ending(batch)) is not None:
            trouble = f"It waits until {ending} has ended, to go on from all of its answers."
            self.context.duties.put_off(duty, trouble=trouble, seconds=ENDING_SECONDS)
            return
        if duty.losses >= MOST_LOSSES:
            self._fail(duty, prefix, [_planner_lost(duty)])
            return
        try:
            plan = stage(self.context, batch, prefix)
        except (InvalidRequestError, RequestFileInvalidError) as error:
            self._fail(duty, prefix, _errors(error))
            return
        except Exception:
            self.context.storage.delete_prefix(prefix)
            raise
        try:
            self.context.life.activate(duty, plan)
        except DutyLostError:
            self.context.storage.delete_prefix(prefix)
            raise
        for attempt in range(1, duty.attempt):  # what planners that died have staged
            self.context.storage.delete_prefix(f"batches/{duty.batch_id}/plan-{attempt}")
        log.info("planned %s: %d rows in %d chunks", duty.batch_id, plan.rows_total, len(plan.chunks))

    def _fail(self, duty: Duty, prefix: str, errors: list[dict[str, Any]]) -> None:
        """Ends the batch, and only then forgets what was staged: another attempt's plan may be real by now."""
        try:
            self.context.life.fail(duty, errors)
        except DutyLostError:
            self.context.storage.delete_prefix(prefix)
            raise
        self.context.storage.delete_prefix(f"batches/{duty.batch_id}")
        log.info("failed %s: %s", duty.batch_id, errors[0]["code"])

    def _put_off(self, duty: Duty, batch: Mapping[str, Any], error: Exception) -> None:
        trouble = f"The {duty.kind} duty met trouble and is tried again every {RETRY_SECONDS:.0f} s: {_said(error)}"
        if duty.attempt >= CANCELLED_TRIES and self._may_do_without_target(batch, error):
            # A cancel must end even where its target cannot be written; the parts stay in storage.
            trouble = f"No target was written: {_said(error)}"
            self.context.life.finish(duty, BatchStatus.CANCELLED, trouble=trouble)
        else:
            # What has no room in memory now will hardly have it later, and may end the process the next time.
            lost = isinstance(error, (MemoryError, duckdb.OutOfMemoryException))
            self.context.duties.put_off(duty, trouble=trouble, seconds=RETRY_SECONDS, lost=lost)

    def _may_do_without_target(self, batch: Mapping[str, Any], error: Exception) -> bool:
        """But a file that an attempt before has published must not be left without its manifest: it were nobody's."""
        if batch["status"] != BatchStatus.CANCELLING or batch["dataset"] is None:
            return False
        return isinstance(error, TargetTakenError) or batch["dry_run"] or not may_stand(self.context, batch)

    @contextmanager
    def _heartbeat(self, duty: Duty, lease_seconds: float) -> Iterator[None]:
        """Extends the duty's lease from a thread while the body works."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(lease_seconds / 3):
                try:
                    self.context.duties.extend(duty, lease_seconds=lease_seconds)
                except DutyLostError:
                    return  # the work goes on to its end, where the same fence refuses its effect
                except StoreTroubleError:
                    log.warning("could not extend %s of %s", duty.kind, duty.batch_id, exc_info=True)

        thread = threading.Thread(target=beat, name=f"lease of {duty.kind} {duty.batch_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _planner_lost(duty: Duty) -> dict[str, Any]:
    message = (
        f"{_lost(duty)} That is the limit. Nothing was run. Look at its source for values of many megabytes, and at "
        "the service's log; then submit it again."
    )
    return {"code": "planner_lost", "message": message, "param": None, "line": None}


def _lost(duty: Duty) -> str:
    return f"{duty.losses} times a process of the service ended in the {duty.kind} duty of this batch."


def _errors(error: InvalidRequestError | RequestFileInvalidError) -> list[dict[str, Any]]:
    if isinstance(error, RequestFileInvalidError):
        return [line.model_dump() for line in error.errors]
    return [{"code": error.code, "message": _said(error), "param": error.param, "line": None}]


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})." if error.filename else f"{error.strerror}."
    return str(error).removesuffix(" Nothing was submitted.") or type(error).__name__
