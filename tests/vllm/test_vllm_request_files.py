"""Request files on real vLLM: at each endpoint the answers of the files are those that the engine gives directly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import Batch
from pool import Pool

from airflow_batch_llm.models import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES
from tests.conftest import eventually
from tests.service.requests import create, file_of, lines_of
from tests.vllm.conftest import sample_texts

pytestmark = pytest.mark.vllm

TOO_LONG = 7
SCHEMA = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_completion_tokens": 6, "temperature": 0}


def completion(text: str) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": 6, "temperature": 0}


def response(text: str) -> dict[str, Any]:
    return {"input": text, "max_output_tokens": 6, "temperature": 0}


def embedding(text: str) -> dict[str, Any]:
    return {"input": text}


def chat_text(body: dict[str, Any]) -> Any:
    return body["choices"][0]["message"]["content"]


def completion_text(body: dict[str, Any]) -> Any:
    return body["choices"][0]["text"]


def response_text(body: dict[str, Any]) -> Any:
    return body["output"][0]["content"][0]["text"]


def vector(body: dict[str, Any]) -> Any:
    return [round(value, 4) for value in body["data"][0]["embedding"]]


@pytest.fixture
def client(pool: Pool) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{pool.url}/v1", api_key=pool.token) as opened:
        yield opened


def ended(client: OpenAI, batch: Batch) -> Batch:
    def look() -> Batch | None:
        seen = client.batches.retrieve(batch.id)
        return seen if seen.status in ("completed", "failed", "expired", "cancelled") else None

    return eventually(look, seconds=120, what=f"the end of {batch.id}")  # type: ignore[no-any-return]


def directly(socket: Path, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """The engine's own answer, past worker and service."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=60) as engine:
        return engine.post(f"http://engine{endpoint}", json=body).raise_for_status().json()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("endpoint", "body", "told"),
    [
        (CHAT_COMPLETIONS, chat, chat_text),
        (COMPLETIONS, completion, completion_text),
        (RESPONSES, response, response_text),
        (EMBEDDINGS, embedding, vector),
    ],
)
def test_a_request_file_gets_the_engines_own_answers(
    client: OpenAI, pool: Pool, embeddings: tuple[str, Path], endpoint: str, body: Any, told: Any
) -> None:
    texts = sample_texts(40)
    texts[TOO_LONG] = "far too long " * 2_000
    model, socket = (
        embeddings if endpoint == EMBEDDINGS else (pool.model, pool.home / "workers" / "local" / "engine.sock")
    )
    bodies = [{"model": model, **body(text)} for text in texts]
    lines = [
        {"custom_id": f"row-{row}", "method": "POST", "url": endpoint, "body": content}
        for row, content in enumerate(bodies)
    ]
    batch = ended(client, create(client, file_of(lines), endpoint=endpoint))
    assert batch.status == "completed", batch.errors
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 39, "failed": 1}
    answers = {row["custom_id"]: row["response"]["body"] for row in lines_of(client, batch.output_file_id)}
    for row in (0, 1, 20, 39):
        assert told(answers[f"row-{row}"]) == told(directly(socket, endpoint, bodies[row]))
    [error] = lines_of(client, batch.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"]) == (f"row-{TOO_LONG}", 400)
    assert "maximum context length is 1024" in error["response"]["body"]["error"]["message"]
    assert batch.usage is not None
    assert batch.usage.input_tokens > 39
    assert (batch.usage.output_tokens > 0) == (endpoint != EMBEDDINGS)


def test_each_worker_offers_the_endpoints_that_its_engine_has(pool: Pool, embeddings: tuple[str, Path]) -> None:
    with pool.client() as client:
        offered = {model.id: set(model.endpoints) for model in client.models().data}
    assert offered == {pool.model: {CHAT_COMPLETIONS, COMPLETIONS, RESPONSES}, embeddings[0]: {EMBEDDINGS}}


def test_a_schema_holds_every_answer(client: OpenAI, pool: Pool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": False}}
    lines = [
        {
            "custom_id": str(row),
            "method": "POST",
            "url": CHAT_COMPLETIONS,
            "body": {"model": pool.model, **chat(text), "max_completion_tokens": 40, "response_format": form},
        }
        for row, text in enumerate(sample_texts(30))
    ]
    batch = ended(client, create(client, file_of(lines)))
    answers = lines_of(client, batch.output_file_id)
    assert len(answers) == 30
    assert all(isinstance(json.loads(chat_text(row["response"]["body"]))["good"], bool) for row in answers)


def test_the_engines_own_description_is_what_fields_are_checked_against(client: OpenAI, pool: Pool) -> None:
    body = {"model": pool.model, **chat("hello"), "guided_json": SCHEMA}
    line = {"custom_id": "a", "method": "POST", "url": CHAT_COMPLETIONS, "body": body}
    batch = ended(client, create(client, file_of([line])))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [error.param for error in batch.errors.data or []] == ["body.guided_json"]
