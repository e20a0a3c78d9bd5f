"""The demo's trained model: its answers are right, and the same through the whole system as from vLLM alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from pool import SECTION_MODEL, SECTION_MODEL_NAME, Pool
from section_groups import GROUP_OF, GROUPS, PROMPT

from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import PACKAGES, running_pool
from tests.vllm.conftest import Tables

pytestmark = pytest.mark.vllm

SAMPLE_ROWS = 1000
EVERY = 4
LEAST_RIGHT = 0.6


@pytest.fixture(scope="module")
def section_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("sections")
    with running_pool(folder, model=SECTION_MODEL, name=SECTION_MODEL_NAME) as started:
        yield started


@pytest.fixture(scope="module")
def labelled(section_pool: Pool) -> list[dict[str, Any]]:
    """Packages that the training did not see, labelled through service and worker as the example Dag does it."""
    chosen = pq.read_table(PACKAGES).take(list(range(0, SAMPLE_ROWS, EVERY)))
    pq.write_table(chosen, section_pool.data_root / "packages.parquet")
    dataset = DatasetSpec(
        source="packages.parquet",
        target="labels.parquet",
        messages=[Message(role="user", content=PROMPT)],
        choices=list(GROUPS),
    )
    with section_pool.client() as client:
        batch = client.submit(BatchCreate(dataset=dataset, model=section_pool.model))
        return Tables(section_pool, client).target(batch.id)


def test_the_labels_are_right_for_packages_that_the_model_has_not_seen(labelled: list[dict[str, Any]]) -> None:
    assert len(labelled) == SAMPLE_ROWS // EVERY
    right = sum(row["llm_output"] == GROUP_OF[row["section"]] for row in labelled)
    assert right / len(labelled) >= LEAST_RIGHT


def test_each_row_has_the_label_that_the_engine_alone_gives_it(
    labelled: list[dict[str, Any]], section_pool: Pool
) -> None:
    socket = section_pool.home / "workers" / "local" / "engine.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=60) as engine:
        alone = [_asked_directly(engine, row) for row in labelled]
    assert [(row["llm_output"], row["llm_finish_reason"], row["llm_prompt_tokens"]) for row in labelled] == alone
    assert {row["llm_output"] for row in labelled} == set(GROUPS), "with few different labels, equal ones say little"


def _asked_directly(engine: httpx.Client, row: dict[str, Any]) -> tuple[str, str, int]:
    body = {
        "model": SECTION_MODEL_NAME,
        "messages": [{"role": "user", "content": PROMPT.format(**row)}],
        "structured_outputs": {"choice": list(GROUPS)},
        "temperature": 0,
    }
    answer = engine.post("http://engine/v1/chat/completions", json=body).raise_for_status().json()
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], answer["usage"]["prompt_tokens"]
