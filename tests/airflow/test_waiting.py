"""What an ended batch means for its task, and how much a waiting one logs."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_batch_llm import clock
from airflow_batch_llm.hooks.outcome import asset_extra, outcome
from airflow_batch_llm.hooks.waiting import ProgressLog
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch, Manifest, Progress, RequestCounts, TargetFile

pytestmark = pytest.mark.airflow

log = logging.getLogger("test")


def batch(status: BatchStatus = BatchStatus.COMPLETED, *, done: int = 10, failed: int = 0, **changes: Any) -> Batch:
    manifest = Manifest(
        batch_id="batch_1",
        status=status,
        model="tiny",
        source="in.parquet",
        format="parquet",
        files=[TargetFile(uri="/data/out.parquet", rows=10, bytes=99, sha256="00")],
        rows=10,
        counts={"success": 10 - failed, "error": failed},
        prompt_tokens=1,
        completion_tokens=2,
        gpu_seconds=0.5,
        created_at=1,
        finished_at=2,
    )
    values = {"id": "batch_1", "endpoint": "/v1/chat/completions", "created_at": 1, "team": "default"}
    counts = RequestCounts(total=10, completed=10 - failed, failed=failed)
    progress = Progress(rows_total=10, rows_done=done, rows_failed=failed)
    ended = {"manifest": manifest if status.ended else None}
    return Batch(**{**values, **ended, "status": status, "request_counts": counts, "progress": progress, **changes})


def test_the_result_is_the_manifest_in_json_types() -> None:
    result = outcome(batch(), log)
    assert result["files"][0]["uri"] == "/data/out.parquet"
    assert result["status"] == "completed"
    assert type(result["status"]) is str


def test_failed_rows_are_a_warning_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        outcome(batch(failed=3), log)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("3 of 10 rows")


def test_no_failed_rows_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        outcome(batch(), log)
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_a_batch_that_failed_is_not_retried() -> None:
    with pytest.raises(AirflowFailException, match="batch_1"):
        outcome(batch(BatchStatus.FAILED), log)


@pytest.mark.parametrize("status", [BatchStatus.CANCELLED, BatchStatus.EXPIRED])
def test_a_batch_that_ended_early_may_be_retried(status: BatchStatus) -> None:
    with pytest.raises(AirflowException, match="retry goes on") as failure:
        outcome(batch(status), log)
    assert not isinstance(failure.value, AirflowFailException)


def test_a_batch_of_a_request_file_gives_its_files() -> None:
    result = outcome(batch(manifest=None, output_file_id="file_1"), log)
    assert result["id"] == "batch_1"
    assert result["output_file_id"] == "file_1"


def test_an_asset_event_says_what_was_written() -> None:
    extra = asset_extra(batch(failed=3))
    assert extra["files"] == ["/data/out.parquet"]
    assert extra["counts"] == {"success": 7, "error": 3}
    assert extra["manifest"] == "/data/out.parquet.manifest.json"
    assert (extra["prompt_tokens"], extra["completion_tokens"]) == (1, 2)


def test_progress_is_logged_at_first_then_when_it_moved_and_not_more_often_than_every_30_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    progress, start = ProgressLog(log), clock.now()
    with caplog.at_level(logging.INFO):
        for second, done in [(0, 1), (5, 2), (31, 3), (70, 3), (75, 4)]:
            progress.saw(batch(BatchStatus.IN_PROGRESS, done=done), now=start + timedelta(seconds=second))
    assert [record.getMessage().split(", ")[1] for record in caplog.records] == [
        "1 of 10 rows (10%)",
        "3 of 10 rows (30%)",
        "4 of 10 rows (40%)",
    ]


def test_a_new_status_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    progress, now = ProgressLog(log), clock.now()
    with caplog.at_level(logging.INFO):
        for status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.IN_PROGRESS):
            progress.saw(batch(status), now=now)
    assert len(caplog.records) == 2
