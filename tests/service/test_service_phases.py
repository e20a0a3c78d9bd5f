"""The phases of each kind of life that a batch can have."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_batch_llm.service.phases import phases

TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelled_at")


def told(
    first_commit: float | None = None, *, chunks: int = 3, **times: float
) -> list[tuple[str, float, float | None]]:
    record: dict[str, Any] = dict.fromkeys(TIMES) | {"created_at": 1.0, "chunks_total": chunks} | times
    return [(phase.name, phase.started_at, phase.ended_at) for phase in phases(record, first_commit)]


def test_a_living_batch_is_in_its_last_phase_which_is_open() -> None:
    assert told() == [("planning", 1.0, None)]
    assert told(in_progress_at=2.0) == [("planning", 1.0, 2.0), ("waiting", 2.0, None)]
    assert told(3.0, in_progress_at=2.0)[1:] == [("waiting", 2.0, 3.0), ("running", 3.0, None)]
    assert told(3.0, in_progress_at=2.0, finalizing_at=4.0)[2:] == [("running", 3.0, 4.0), ("assembling", 4.0, None)]


@pytest.mark.parametrize("end", ["completed_at", "expired_at", "cancelled_at"])
def test_a_batch_that_ran_has_had_all_four(end: str) -> None:
    assert told(3.0, in_progress_at=2.0, finalizing_at=4.0, **{end: 5.0}) == [
        ("planning", 1.0, 2.0),
        ("waiting", 2.0, 3.0),
        ("running", 3.0, 4.0),
        ("assembling", 4.0, 5.0),
    ]


@pytest.mark.parametrize("end", ["failed_at", "cancelled_at"])
def test_a_batch_that_never_had_a_plan_has_planned_alone(end: str) -> None:
    assert told(chunks=0, **{end: 5.0}) == [("planning", 1.0, 5.0)]


def test_a_batch_that_ended_before_anybody_worked_on_it_has_waited_to_the_end() -> None:
    assert told(in_progress_at=2.0, finalizing_at=4.0, expired_at=5.0)[1:] == [
        ("waiting", 2.0, 4.0),
        ("assembling", 4.0, 5.0),
    ]


def test_what_is_committed_after_a_batchs_time_was_up_is_no_running() -> None:
    late = told(4.5, in_progress_at=2.0, finalizing_at=4.0, expired_at=5.0)
    assert [name for name, *_ in late] == ["planning", "waiting", "assembling"]


def test_a_batch_whose_rows_all_had_their_result_has_waited_for_nobody() -> None:
    assert told(chunks=0, in_progress_at=2.0, finalizing_at=2.0, completed_at=3.0) == [
        ("planning", 1.0, 2.0),
        ("assembling", 2.0, 3.0),
    ]


def test_a_batch_that_is_being_cancelled_runs_until_its_workers_have_let_go() -> None:
    cancelling = {"in_progress_at": 2.0, "cancelling_at": 4.0}
    assert told(3.0, **cancelling)[-1] == ("running", 3.0, None)
    assert told(3.0, **cancelling, finalizing_at=5.0, cancelled_at=6.0)[2:] == [
        ("running", 3.0, 5.0),
        ("assembling", 5.0, 6.0),
    ]
