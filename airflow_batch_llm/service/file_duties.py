"""Planning and assembling a batch of a request file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow_batch_llm import clock
from airflow_batch_llm.service.body_fields import known_fields
from airflow_batch_llm.service.duty_context import DutyContext, ends_as, undone
from airflow_batch_llm.service.file_planner import FilePlanner
from airflow_batch_llm.service.request_file import RequestFile
from airflow_batch_llm.service.result_files import ResultFiles
from airflow_batch_llm.store.duties import Duty, DutyLostError
from airflow_batch_llm.store.life import Plan

log = logging.getLogger(__name__)


def plan_file(context: DutyContext, batch: Mapping[str, Any], prefix: str) -> Plan:
    """Stages the plan. Raises :class:`RequestFileInvalidError` if anything is wrong with the file."""
    stored = context.files.stored(batch["input_file_id"])
    described = context.workers.body_fields(batch["team"], batch["endpoint"])
    with context.storage.open(stored.storage_key) as stream:
        file = RequestFile(
            stream, batch["endpoint"], known_fields(batch["endpoint"], described), context.settings.limits
        )
        return FilePlanner(context.stage(prefix), file, context.done_before(batch)).plan()


def assemble_files(context: DutyContext, duty: Duty, batch: Mapping[str, Any]) -> None:
    """Writes output and error file, and ends the batch with them."""
    root = f"batches/{batch['id']}/files"
    files = ResultFiles(
        storage=context.storage,
        batch_id=batch["id"],
        plan_prefix=batch["plan_key"],
        prefix=f"{root}-{duty.attempt}",
        parts=context.parts(batch),
        rows=batch["rows_total"],
        undone=undone(batch),
    )
    output, error = files.write(
        expires_in=batch["output_seconds"] or context.settings.file_seconds, now=clock.now().timestamp()
    )
    status = ends_as(batch)
    try:
        context.life.finish(duty, status, output=output, error=error)
    except DutyLostError:
        context.storage.delete_prefix(f"{root}-{duty.attempt}")
        raise
    for attempt in range(1, duty.attempt):  # what assemblers that died have written
        context.storage.delete_prefix(f"{root}-{attempt}")
    log.info("%s %s: %d rows", status, batch["id"], batch["rows_total"])
