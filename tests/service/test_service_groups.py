"""Batches that are looked at together: the group that they were submitted with, and its listing."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES
from tests.service.answering import answer_all
from tests.service.two_teams import BLUE, token_of

pytestmark = BOTH_STORES


def submit(service: RunningService, key: str, group: str | None) -> Batch:
    if not (service.data_root / "s.parquet").exists():
        pq.write_table(pa.table({"text": ["a", "b"]}), service.data_root / "s.parquet")
    spec = DatasetSpec(
        source="s.parquet", target=f"{key}.parquet", messages=[Message(role="user", content=f"{key} {{text}}")]
    )
    return service.client.submit(BatchCreate(dataset=spec, model="m", key=key, group=group))


@pytest.fixture
def runs(service: RunningService) -> dict[str, list[str]]:
    """Batches by their group, newest first; the names hold what would be signs in a pattern."""
    names = ["air/dag/run_1", "air/dag/run_1", "air/dag/runX1", "air/dag/run_", "air/dag/run%", None]
    made = [(name, submit(service, f"k{number}", name).id) for number, name in enumerate(names)]
    return {str(group): [batch_id for name, batch_id in reversed(made) if name == group] for group in set(names)}


def test_a_group_lists_the_batches_that_were_submitted_with_it_and_no_others(
    service: RunningService, runs: dict[str, list[str]]
) -> None:
    groups = {group: [batch.id for batch in service.client.of_group(group)] for group in runs if group != "None"}
    assert groups == {group: ids for group, ids in runs.items() if group != "None"}
    assert [batch.id for batch in service.client.of_group("air/dag/run")] == []


async def test_a_group_of_many_pages_is_listed_whole(
    service: RunningService, runs: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("batch_client", "async_client"):
        monkeypatch.setattr(f"airflow_batch_llm.client.{module}.PAGE_BATCHES", 1)
    assert [batch.id for batch in service.client.of_group("air/dag/run_1")] == runs["air/dag/run_1"]
    async with AsyncBatchClient(service.url, service.token) as client:
        assert [batch.id async for batch in client.of_group("air/dag/run_1")] == runs["air/dag/run_1"]


def test_another_teams_group_is_empty(service: RunningService, runs: dict[str, list[str]]) -> None:
    with BatchClient(service.url, token_of(service, BLUE)) as other:
        assert list(other.of_group("air/dag/run_1")) == []


def test_a_new_generation_is_of_the_same_group(service: RunningService) -> None:
    first = submit(service, "k", "g")
    service.client.cancel(first.id)
    answer_all(service, first)
    again = service.client.retry(first.id)
    assert (again.generation, again.group) == (2, "g")
