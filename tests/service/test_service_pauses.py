"""A batch paused and resumed by its team, as a client and a worker see it."""

from __future__ import annotations

import pytest

from airflow_batch_llm.client.watch import progress_line
from airflow_batch_llm.errors import ConflictError
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.keeping import answered, submit


def test_a_paused_batch_says_so_waits_and_completes_once_it_is_resumed(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    batch = submit(service)
    paused = service.client.pause(batch.id)
    assert (paused.status, paused.paused) == ("in_progress", "requested")
    assert worker.claim() is None
    assert (
        paused.progress.waiting_for == f"It is paused, as somebody asked. `batch-llm resume {batch.id}` lets it go on."
    )
    line = progress_line(paused)
    assert line.startswith(
        f"Batch {batch.id} is in_progress, paused, 0 of 3 rows (0%). It is paused, as somebody asked."
    )
    resumed = service.client.resume(batch.id)
    assert (resumed.paused, resumed.progress.waiting_for) == (None, None)
    assert answered(service, batch).status == "completed"


def test_a_paused_batch_has_no_time_to_go_while_its_last_chunk_is_done(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    batch = submit(service)
    claim, lines = worker.claim()  # type: ignore[misc]
    worker.link.extend(claim, [worker.store(claim, 0, lines[:1])])
    assert service.client.get(batch.id).progress.eta_seconds is not None
    progress = service.client.pause(batch.id).progress
    assert (progress.eta_seconds, progress.rows_per_second is None) == (None, False)


def test_a_batch_that_has_ended_is_neither_paused_nor_resumed(service: RunningService) -> None:
    batch = answered(service, submit(service))
    for verb in (service.client.pause, service.client.resume):
        with pytest.raises(ConflictError, match="is completed: only one that is validating or in progress can be"):
            verb(batch.id)
