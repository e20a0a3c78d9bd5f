"""The names under which a task instance submits."""

from __future__ import annotations

import pytest
from conftest import task_instance

from airflow_batch_llm.hooks.names import LONGEST
from airflow_batch_llm.operators.submission import TaskBatchNames

pytestmark = pytest.mark.airflow


def test_a_retry_keeps_the_key_and_a_clear_changes_it() -> None:
    first, retry, cleared = (TaskBatchNames.of(task_instance(max_tries=tries), "http://airflow") for tries in (2, 2, 5))
    assert first.key == retry.key == "http://airflow/reviews/classify/manual__1/-1/2"
    assert cleared.key != first.key


def test_tries_and_clears_of_one_task_instance_are_one_series() -> None:
    series = {TaskBatchNames.of(task_instance(max_tries=tries), "air").series for tries in (0, 1, 7)}
    assert series == {"air/reviews/classify/manual__1/-1"}


def test_every_try_is_a_holder_of_its_own() -> None:
    assert TaskBatchNames.of(task_instance(), "air").holder != TaskBatchNames.of(task_instance(), "air").holder


@pytest.mark.parametrize(
    "change", [{"dag_id": "other"}, {"task_id": "other"}, {"run_id": "other"}, {"map_index": 3}], ids=str
)
def test_other_task_instances_have_other_keys(change: dict[str, object]) -> None:
    assert TaskBatchNames.of(task_instance(**change), "air").key != TaskBatchNames.of(task_instance(), "air").key


def test_names_too_long_for_the_service_are_cut_and_stay_apart() -> None:
    long = {"dag_id": "d" * 250, "task_id": "t" * 250, "run_id": "r" * 250}
    keys = {TaskBatchNames.of(task_instance(**long, max_tries=tries), "air").key for tries in (1, 2)}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {LONGEST}
