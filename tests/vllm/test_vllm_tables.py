"""Whole tables through a pool with real vLLM: vectors, typed columns, choices, samples, estimates.

`WHOLE=1` runs the embeddings on 10,000 rows instead of a few hundred.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.vllm.conftest import Tables, sample_texts

pytestmark = pytest.mark.vllm
EMBEDDED = 10_000 if os.environ.get("WHOLE") else 400
ROWS = 60


def submit(tables: Tables, name: str, texts: list[str], *, model: str, endpoint: str, **spec: Any) -> Batch:
    pq.write_table(pa.table({"text": texts}), tables.pool.data_root / f"{name}.parquet")
    dataset = DatasetSpec(source=f"{name}.parquet", target=f"{name}-out.parquet", **spec)
    return tables.client.submit(BatchCreate(dataset=dataset, model=model, endpoint=endpoint))


def chat(tables: Tables, name: str, texts: list[str], **spec: Any) -> pa.Table:
    """A table's target."""
    messages = [Message(role="user", content="{text}")]
    batch = submit(tables, name, texts, model=tables.pool.model, endpoint=CHAT_COMPLETIONS, messages=messages, **spec)
    ended = tables.ended(batch.id)
    assert ended.status == "completed", ended
    return pq.read_table(tables.pool.data_root / f"{name}-out.parquet")


async def test_embeddings_of_a_table_are_those_of_the_engine(tables: Tables, embeddings: tuple[str, Path]) -> None:
    model, socket = embeddings
    texts = sample_texts(EMBEDDED)
    batch = submit(tables, "vectors", texts, model=model, endpoint=EMBEDDINGS, input="{text}")
    ended = tables.ended(batch.id, seconds=600)
    assert ended.request_counts.completed == EMBEDDED, ended
    target = pq.read_table(tables.pool.data_root / "vectors-out.parquet")
    assert target.schema.field("llm_embedding").type == pa.list_(pa.float32())
    assert target["text"].to_pylist() == texts
    found = np.stack(target["llm_embedding"].to_numpy())
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=120) as engine:
        for at in range(0, EMBEDDED, 500):
            answer = await engine.post(EMBEDDINGS, json={"model": model, "input": texts[at : at + 500]})
            wanted = np.array([one["embedding"] for one in answer.json()["data"]], dtype=np.float32)
            assert np.allclose(found[at : at + 500], wanted, atol=1e-5)


def test_typed_answers_become_typed_columns(tables: Tables) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["tool", "library"]},
            "score": {"type": "integer", "minimum": 0, "maximum": 9},
            "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["kind", "score", "flags"],
        "additionalProperties": False,
    }
    target = chat(tables, "typed", sample_texts(ROWS), output_schema=schema, parameters={"max_tokens": 64})
    assert target.schema.field("score").type == pa.int64()
    assert target.schema.field("flags").type == pa.list_(pa.bool_())
    answered = [row for row in target.to_pylist() if row["llm_status"] == "success"]
    assert len(answered) > ROWS / 2
    assert {row["kind"] for row in answered} <= {"tool", "library"}
    assert all(0 <= row["score"] <= 9 for row in answered)
    for row in target.to_pylist():
        if row["llm_status"] != "success":
            assert (row["kind"], row["score"], row["flags"]) == (None, None, None)
            assert row["llm_output"] is not None
            assert row["llm_error"]


def test_choices_come_with_their_confidence(tables: Tables) -> None:
    target = chat(tables, "chosen", sample_texts(ROWS), choices=["a library", "a tool", "documentation"])
    assert set(target["llm_output"].to_pylist()) <= {"a library", "a tool", "documentation"}
    confidences = target["llm_confidence"].to_pylist()
    assert all(0 < confidence <= 1 for confidence in confidences)


def test_samples_are_seeded_lists(tables: Tables) -> None:
    asks = {"n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 6}
    texts = sample_texts(20)
    first = chat(tables, "samples", texts, parameters=asks)["llm_output"].to_pylist()
    assert all(len(samples) == 3 for samples in first)
    assert any(len(set(samples)) > 1 for samples in first)


def test_a_dry_run_tokenizes_a_sample_with_the_engine(tables: Tables) -> None:
    texts = sample_texts(ROWS)
    done = chat(tables, "counted", texts, parameters={"max_tokens": 4})
    pq.write_table(pa.table({"text": texts}), tables.pool.data_root / "estimated.parquet")
    spec = DatasetSpec(
        source="estimated.parquet",
        messages=[Message(role="user", content="{text}")],
        parameters={"max_tokens": 4, "top_p": 0.9},
    )
    batch = tables.client.submit(BatchCreate(dataset=spec, model=tables.pool.model, dry_run=True))
    estimate = tables.ended(batch.id).estimate
    assert estimate is not None
    assert (estimate.rows_asked, estimate.sample_rows, estimate.tokens_from) == (ROWS, ROWS, "tokenized sample")
    assert abs(estimate.prompt_tokens - sum(done["llm_prompt_tokens"].to_pylist())) <= ROWS
    assert (estimate.gpu_seconds or 0) > 0
