"""What real vLLM answers, as a worker judges it: confidences of choices, instances of schemas, samples, vectors."""

from __future__ import annotations

import array
import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pool import Pool

from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS
from airflow_batch_llm.output_schema import check_output_schema, parse_output_schema
from airflow_batch_llm.service.typed_columns import typed_columns
from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.judgement import judge
from airflow_batch_llm.worker_wire import Claim, ResultLine, RowLine
from tests.vllm.conftest import sample_texts

pytestmark = pytest.mark.vllm

SCHEMA: dict[str, Any] = {
    "$defs": {"Level": {"enum": [1, 2, 3], "type": "integer"}},
    "type": "object",
    "properties": {
        "section": {"enum": ["libs", "games", "größe"]},
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "level": {"$ref": "#/$defs/Level"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "count": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"type": "null"}]},
        "free": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "day": {"type": "string", "format": "date"},
    },
    "required": ["section", "name", "level", "score", "count", "tags", "day"],
}


@pytest.fixture
def socket(pool: Pool) -> Path:
    return pool.home / "workers" / "local" / "engine.sock"


@pytest.fixture
async def engine(pool: Pool, socket: Path) -> AsyncIterator[Engine]:
    async with Engine(model=pool.model, socket=socket) as opened:
        yield opened


def _http(socket: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://engine", timeout=60)


def _claim(model: str, **claim: Any) -> Claim:
    return Claim(
        chunk_id=1, attempt=1, batch_id="b", model=model, rows=1, rows_url="r", sha256="", parts_url="p", done=[],
        lease_seconds=1.0, **{"endpoint": CHAT_COMPLETIONS} | claim,
    )  # fmt: skip


def _line(row: int, text: str) -> RowLine:
    return RowLine(row, json.dumps({"messages": [{"role": "user", "content": text}]}).encode())  # type: ignore[arg-type]


async def _asked(engine: Engine, rows: int, **claim: Any) -> list[ResultLine]:
    asked = _claim(engine.model, **claim)
    check = AnswerCheck.of(asked)
    lines = [_line(row, text) for row, text in enumerate(sample_texts(rows))]
    return list(await asyncio.gather(*(engine.ask(line, asked, check) for line in lines)))


def _of_choices(choices: list[str], **more: Any) -> dict[str, Any]:
    return {"structured_outputs": {"choice": choices}, "logprobs": True, "temperature": 0} | more


async def _sampled(socket: Path, model: str, choices: list[str]) -> dict[tuple[str, ...], float]:
    """The confidence of each way in tokens to a choice that 256 samples took."""
    found: dict[tuple[str, ...], float] = {}
    body = {"model": model, "messages": [{"role": "user", "content": "What is it?"}]}
    async with _http(socket) as http:
        for seed in range(4):
            asked = body | _of_choices(choices, temperature=1.5, seed=seed, n=64)
            answer = (await http.post(CHAT_COMPLETIONS, json=asked)).raise_for_status().json()
            for choice in answer["choices"]:
                alone = json.dumps({"choices": [choice]}).encode()
                result = judge(0, 200, alone, AnswerCheck(choices=frozenset(choices)))
                assert result.confidence is not None
                way = tuple(token["token"] for token in choice["logprobs"]["content"])
                assert found.setdefault(way, result.confidence) == pytest.approx(result.confidence, rel=1e-4)
    return found


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(["aaaaaa bb", "bbbb cc"], id="many tokens"),
        pytest.param(["bbbb", "bbbb cc"], id="one begins with another"),
        pytest.param(["größe", "日本", "x"], id="characters of several tokens"),
    ],
)
async def test_confidences_of_all_ways_to_all_choices_sum_to_one(pool: Pool, socket: Path, choices: list[str]) -> None:
    ways = await _sampled(socket, pool.model, choices)
    assert sum(ways.values()) == pytest.approx(1, abs=1e-4)
    assert len(ways) >= len(choices)
    assert all(0 < confidence < 1 for confidence in ways.values())


async def test_confidences_of_more_than_twenty_choices_sum_to_one(engine: Engine, socket: Path) -> None:
    choices = [chr(ord("a") + number) for number in range(26)]
    tokens = []
    async with _http(socket) as http:
        for text in choices:
            answer = await http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
            tokens.append(answer.json()["tokens"])
    assert {len(found) for found in tokens} == {1}
    results = [
        (await _asked(engine, 1, choices=choices, parameters=_of_choices(choices, logit_bias={str(token): 100})))[0]
        for (token,) in tokens
    ]
    assert [result.output for result in results] == choices
    assert sum(result.confidence or 0 for result in results) == pytest.approx(1, abs=1e-4)


async def test_every_choice_comes_with_its_confidence(engine: Engine) -> None:
    choices = [f"label {number}" for number in range(30)]
    results = await _asked(engine, 50, choices=choices, parameters=_of_choices(choices))
    assert {result.status for result in results} == {"success"}
    assert all(result.confidence is not None and 0 < result.confidence <= 1 for result in results)
    assert len({result.confidence for result in results}) > 10


async def test_answers_are_instances_of_a_schema_and_become_columns(engine: Engine) -> None:
    parameters = {"structured_outputs": {"json": SCHEMA}, "temperature": 1, "seed": 1, "max_tokens": 400}
    results = await _asked(engine, 50, output_schema=SCHEMA, parameters=parameters)
    assert {result.status for result in results} == {"success"}, [result.error for result in results if result.error]
    fields = parse_output_schema(SCHEMA)
    columns = typed_columns(pa.array([result.output for result in results]), [True] * 50, fields)
    answers = [json.loads(result.output or "") for result in results]
    for field, column in zip(fields, columns, strict=True):
        assert column.to_pylist() == [answer.get(field.name) for answer in answers]
    assert len({result.output for result in results}) > 25


async def test_an_instance_that_was_cut_is_truncated(engine: Engine) -> None:
    parameters = {"structured_outputs": {"json": SCHEMA}, "temperature": 0, "max_tokens": 5}
    (result,) = await _asked(engine, 1, output_schema=SCHEMA, parameters=parameters)
    assert (result.status, result.code, result.finish_reason) == ("invalid_output", "truncated", "length")
    assert (result.output or "").startswith('{"')


@pytest.mark.parametrize(
    "part",
    [
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "string", "format": "path"},
        {"allOf": [{"type": "integer"}, {"minimum": 3}]},
        {"enum": []},
        {"$ref": "#/$defs/No"},
    ],
)
async def test_what_vllm_refuses_is_refused_before(engine: Engine, part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": part}, "required": ["a"]}
    (result,) = await _asked(engine, 1, parameters={"structured_outputs": {"json": schema}})
    assert (result.status, result.code) == ("error", "engine_refused")
    with pytest.raises(ValueError):
        check_output_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "#/$defs/I", "minimum": 5}}, "$defs": {"I": {"enum": [1, 2]}}},
        {"properties": {"a": {"type": "integer", "enum": [1, 2], "minimum": 5}}},
        {"properties": {"a": {"enum": ["x"], "not": {"const": "x"}}}},
        {"properties": {"a": {"const": 1}}, "dependentRequired": {"a": ["b"]}},
    ],
)
async def test_what_vllm_ignores_is_refused_before(engine: Engine, schema: dict[str, Any]) -> None:
    schema = {"type": "object", "required": ["a"], **schema}
    (result,) = await _asked(engine, 1, parameters={"structured_outputs": {"json": schema}, "temperature": 0})
    assert json.loads(result.output or "")["a"] in (1, 2, "x")
    with pytest.raises(ValueError):
        check_output_schema(schema)


async def test_samples_are_those_of_the_engine(engine: Engine) -> None:
    parameters = {"n": 4, "temperature": 1, "seed": 7, "max_tokens": 6}
    results = await _asked(engine, 5, parameters=parameters)
    assert [len(result.outputs or []) for result in results] == [4] * 5
    assert all(len(set(result.outputs or [])) > 1 for result in results)
    assert {result.completion_tokens for result in results} == {24}
    assert [result.outputs for result in await _asked(engine, 5, parameters=parameters)] == [
        result.outputs for result in results
    ]


async def test_vectors_are_the_engines_floats(embeddings: tuple[str, Path]) -> None:
    model, socket = embeddings
    async with Engine(model=model, socket=socket) as engine:
        packed, listed = [
            await engine.ask(RowLine(0, b'{"input":"hello"}'), claim, AnswerCheck.of(claim))  # type: ignore[arg-type]
            for claim in (
                _claim(model, endpoint=EMBEDDINGS, parameters={"encoding_format": "base64"}),
                _claim(model, endpoint=EMBEDDINGS, parameters={}),
            )
        ]
    async with _http(socket) as http:
        answer = (await http.post(EMBEDDINGS, json={"model": model, "input": "hello"})).json()
    floats = array.array("f", answer["data"][0]["embedding"])
    assert array.array("f", base64.b64decode(packed.embedding or "")) == floats
    assert listed == packed
    assert len(floats) > 10
