"""Which priority a run's batch gets, with whom it shares a turn, and by when it is due."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from conftest import task_instance

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.queue_place import queue_place

pytestmark = pytest.mark.airflow


def context(run_type: Any = "scheduled", run_id: str = "scheduled__2026-01-31", **run: Any) -> Any:
    """What Airflow gives a task: by default of a run whose data interval has no length."""
    at = datetime(2026, 1, 31, tzinfo=UTC)
    interval = {"data_interval_start": at, "data_interval_end": at}
    values = {"run_type": run_type, "run_id": run_id, "conf": None, "logical_date": at, "partition_key": None}
    return {"ti": task_instance(run_id=run_id), "dag_run": SimpleNamespace(**{**values, **interval, **run})}


def priority(given: Any = None, extra: Any = None, **run: Any) -> int:
    return queue_place(context(**run), priority=given, deadline=None, extra=extra or {}).priority


@pytest.mark.parametrize(
    ("run_type", "number"),
    [("manual", 100), ("scheduled", 0), ("asset_triggered", 0), ("operator_triggered", 0), ("backfill", -100)],
)
def test_the_type_of_the_run_gives_the_priority(run_type: str, number: int) -> None:
    assert priority(run_type=run_type) == number
    assert priority(run_type=DagRunType(run_type)) == number


def test_a_run_that_a_backfill_reprocesses_is_a_backfill_whatever_its_id_says() -> None:
    assert priority(run_type="backfill", run_id="scheduled__2026-01-31T00:00:00+00:00") == -100
    assert priority(run_type="scheduled", run_id="backfill__2026-01-31T00:00:00+00:00") == 0


@pytest.mark.parametrize(("given", "number"), [("low", -100), ("urgent", 500), (7, 7), ("-7", -7), (0, 0)])
def test_a_task_gives_a_number_or_a_word(given: Any, number: int) -> None:
    assert priority(given, run_type="manual") == number


def test_a_callable_sees_the_context_and_may_leave_it_to_the_run_type() -> None:
    def of_first_days(seen: Any) -> str | None:
        return "urgent" if seen["dag_run"].logical_date.day == 1 else None

    first = datetime(2026, 1, 1, tzinfo=UTC)
    assert priority(of_first_days, run_type="backfill", logical_date=first) == 500
    assert priority(of_first_days, run_type="backfill") == -100


def test_the_connection_gives_one_for_all_runs_or_by_their_type() -> None:
    assert priority(extra={"priority": "high"}) == 100
    by_type = {"priority": {"backfill": -500, "manual": "urgent"}}
    assert [priority(extra=by_type, run_type=each) for each in ("backfill", "manual", "scheduled")] == [-500, 500, 0]
    of_the_form = {"priority": json.dumps(by_type["priority"])}
    assert priority(extra=of_the_form, run_type="manual") == 500
    assert priority("low", extra={"priority": "high"}) == -100
    assert priority(extra={"priority": ""}) == 0


def test_the_conf_of_a_run_goes_before_all_else_and_spares_the_callable() -> None:
    def never(_: Any) -> int:
        raise AssertionError

    conf = {"batch_llm_priority": "urgent"}
    assert priority(never, extra={"priority": "low"}, run_type="backfill", conf=conf) == 500


@pytest.mark.parametrize("conf", [{"batch_llm_priority": said} for said in ("soon", 5_000, "--5")])
def test_what_is_no_priority_fails_the_task_without_retries(conf: Any) -> None:
    with pytest.raises(
        AirflowFailException, match=r"The key batch_llm_priority of the Dag run's conf is .* whole number"
    ):
        priority(conf=conf)


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (datetime(2030, 1, 1, tzinfo=UTC), 1_893_456_000),
        (datetime(2030, 1, 1), 1_893_456_000),  # noqa: DTZ001 (what has no zone is UTC, as in Airflow)
        ("2030-01-01T01:00:00+01:00", 1_893_456_000),
        (None, None),
    ],
)
def test_a_deadline_is_a_time_however_it_is_written(deadline: Any, expected: int | None) -> None:
    assert queue_place(context(), priority=None, deadline=deadline, extra={}).deadline == expected


@pytest.mark.parametrize("deadline", ["tomorrow", "", "P1D", 3600, date(2030, 1, 1)])
def test_a_deadline_that_is_no_time_fails_the_task(deadline: Any) -> None:
    with pytest.raises(AirflowFailException, match="is no time such as"):
        queue_place(context(), priority=None, deadline=deadline, extra={})


def submitted(service: Any, given: Any, **changes: Any) -> Any:
    arguments = {"source": "reviews.parquet", "target": "labels.parquet", "model": "tiny", "prompt": "{text}?"}
    task = BatchLLMOperator(task_id="classify", inline_wait=0.0, **{**arguments, **changes})
    task.render_template_fields(given)
    with pytest.raises(TaskDeferred) as deferral:
        task.execute(given)
    return service.client.get(deferral.value.trigger.batch_id)


def test_the_batch_of_a_backfill_has_its_priority_and_shares_the_turn_of_its_dag(connected: Any) -> None:
    batch = submitted(connected, context("backfill"), deadline=timedelta(hours=3), completion_window="24h")
    assert (batch.priority, batch.fair_group) == (-100, "reviews")
    assert batch.expires_at == batch.deadline
    assert 3 * 3_600 - 60 < batch.deadline - batch.created_at <= 3 * 3_600


def test_the_extra_of_the_connection_counts(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "batch_llm", "host": connected.url, "password": connected.token}
    extra = {"extra": {"priority": {"scheduled": "urgent"}}}
    monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection | extra))
    assert submitted(connected, context()).priority == 500


def test_a_partitioned_run_without_a_logical_date_is_submitted_under_names_of_its_own(connected: Any) -> None:
    """Neither the key nor a place needs ``ds``, which such a run does not have."""
    (connected.data_root / "eu").mkdir()
    (connected.data_root / "reviews.parquet").rename(connected.data_root / "eu" / "reviews.parquet")
    run = context("asset_triggered", run_id="asset_triggered__x", logical_date=None, partition_key="eu")
    run["dag_run"].data_interval_start = run["dag_run"].data_interval_end = None
    places = {"source": "{{ partition_key }}/reviews.parquet", "target": "labels/{{ dag_run.run_id }}.parquet"}
    batch = submitted(connected, run | {"partition_key": "eu"}, **places)
    assert batch.dataset.source == "eu/reviews.parquet"
    assert batch.dataset.target == "labels/asset_triggered__x.parquet"
    assert batch.series.endswith("/reviews/classify/asset_triggered__x/-1")
    assert batch.priority == 0


def test_runs_whose_data_intervals_have_no_length_are_apart(connected: Any) -> None:
    both = [submitted(connected, context(run_id=f"scheduled__{day}"), target=f"labels/{day}.parquet") for day in (1, 2)]
    assert both[0].key != both[1].key
    assert [batch.status.value for batch in both] == ["validating", "validating"]
