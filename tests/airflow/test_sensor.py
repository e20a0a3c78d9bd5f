"""The sensor against a real service."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred

from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message

pytestmark = pytest.mark.airflow


@pytest.fixture
def batch_id(connected: Any) -> str:
    dataset = DatasetSpec(
        source="reviews.parquet", target="labels.parquet", messages=[Message(role="user", content="{text}")]
    )
    return str(connected.client.submit(BatchCreate(dataset=dataset, model="tiny")).id)


def test_a_sensor_defers_and_its_trigger_never_cancels(batch_id: str) -> None:
    sensor = BatchLLMSensor(task_id="wait", batch_id=batch_id, timeout=60)
    with pytest.raises(TaskDeferred) as deferral:
        sensor.execute({})
    assert deferral.value.trigger.batch_id == batch_id
    assert deferral.value.trigger.cancel_on_kill is False
    assert deferral.value.timeout.total_seconds() == 60
    assert sensor.batch_url is not None


def test_a_sensor_that_does_not_defer_looks_again(batch_id: str) -> None:
    assert not BatchLLMSensor(task_id="wait", batch_id=batch_id, deferrable=False).poke({}).is_done


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_batch_that_ended_early_fails_its_sensor(deferrable: bool, connected: Any, batch_id: str) -> None:
    connected.client.cancel(batch_id)
    while not connected.client.get(batch_id).status.ended:
        assert connected.plan() or connected.assemble()
    with pytest.raises(AirflowException, match=batch_id):
        BatchLLMSensor(task_id="wait", batch_id=batch_id, deferrable=deferrable).execute({})


def test_a_sensors_batch_may_be_another_tasks_result() -> None:
    assert "batch_id" in BatchLLMSensor.template_fields
