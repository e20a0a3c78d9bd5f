"""Deleting a batch: nothing of it is left, and nothing else goes."""

from __future__ import annotations

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES_IF_WHOLE
from tests.service.answering import AnsweringWorker

pytestmark = BOTH_STORES_IF_WHOLE


def delete(service: RunningService, batch_id: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.delete(f"{service.url}/v1/batches/{batch_id}", headers=headers)


def submit(service: RunningService, name: str) -> Batch:
    pq.write_table(pa.table({"text": ["a", "b"]}), service.data_root / "s.parquet")
    spec = DatasetSpec(source="s.parquet", target=f"{name}.parquet", messages=[Message(role="user", content="{text}")])
    batch = service.client.submit(BatchCreate(dataset=spec, model="m", key=name))
    assert service.plan()
    return service.client.get(batch.id)


def test_a_deleted_batch_is_gone_with_its_answers_and_its_target_stays(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    batch = submit(service, "first")
    worker.work()
    assert service.assemble()
    assert submit(service, "known").progress.rows_reused == 2
    assert delete(service, batch.id).json() == {"id": batch.id, "object": "batch", "deleted": True}
    with pytest.raises(NotFoundError):
        service.client.get(batch.id)
    assert delete(service, batch.id).status_code == 404
    stored = list(service.state.storage.list(""))
    assert not [key for key in stored if batch.id in key or key.startswith("index/")]
    assert (service.data_root / "first.parquet").exists()
    again = submit(service, "again")
    assert again.progress.rows_reused == 0


def test_a_living_batch_is_not_deleted(service: RunningService) -> None:
    batch = submit(service, "first")
    answer = delete(service, batch.id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "batch_in_use")
    assert service.client.get(batch.id).status == "in_progress"
