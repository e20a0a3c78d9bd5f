"""Request files through a worker: bodies and answers pass byte for byte, at every endpoint that the engine has."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from airflow_batch_llm.models import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, ENDPOINTS, RESPONSES
from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.described import described_endpoints
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError, engine_error, judge, one_line
from tests.service.requests import create, file_of, line, lines_of, openai_client
from tests.worker.conftest import Bench, soon
from tests.worker.fake_engine import MARK

SCHEMAS = {CHAT_COMPLETIONS: "Chat", COMPLETIONS: "Text", EMBEDDINGS: "Any", RESPONSES: "Text"}


def _posted(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"post": {"requestBody": {"content": content}}}


DESCRIPTION: dict[str, Any] = {
    "paths": {endpoint: _posted(schema) for endpoint, schema in SCHEMAS.items()} | {"/health": {"get": {}}},
    "components": {
        "schemas": {
            "Chat": {"properties": {"messages": {}, "model": {}, "seed": {}}},
            "Text": {"properties": {"prompt": {}, "input": {}, "model": {}}},
            "Any": {"anyOf": [{"$ref": "#/components/schemas/Text"}, {"properties": {"dimensions": {}}}]},
        }
    },
}


async def _run(bench: Bench, content: bytes, endpoint: str) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """A request file through a worker: the batch that came of it, its output lines and its error lines."""
    bench.engine.model, bench.engine.description = "m", DESCRIPTION
    client = openai_client(bench.service)
    batch = await asyncio.to_thread(create, client, content, endpoint=endpoint)
    async with bench.worker():
        await soon(lambda: bench.service.client.models().data, what="the worker registers")
        await asyncio.to_thread(bench.service.plan)
        await soon(lambda: bench.service.client.get(batch.id).status == "finalizing", what="all rows are done")
        served = [model.endpoints for model in bench.service.client.models().data]
    assert [sorted(endpoints) for endpoints in served] == [sorted(ENDPOINTS)]
    await asyncio.to_thread(bench.service.assemble)
    batch = await asyncio.to_thread(client.batches.retrieve, batch.id)
    assert batch.status == "completed", batch.errors
    return batch, lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_every_endpoint_that_the_engine_describes_is_served(bench: Bench, endpoint: str) -> None:
    batch, answers, errors = await _run(bench, file_of(line(n, endpoint=endpoint) for n in range(30)), endpoint)
    assert errors == []
    assert [answer["custom_id"] for answer in answers] == [f"row-{n}" for n in range(30)]
    assert all(MARK in json.dumps(answer["response"]["body"]) for answer in answers)
    assert batch.usage.input_tokens == 300
    details = batch.usage.input_tokens_details.cached_tokens, batch.usage.output_tokens_details.reasoning_tokens
    assert details == ((120, 60) if endpoint == RESPONSES else (0, 0))


async def test_a_body_reaches_the_engine_byte_for_byte_and_so_does_its_answer_the_file(bench: Bench) -> None:
    body = b'{ "model":"m","messages" : [ {"role":"user","content":"h\\u00e9"} ],"seed":123456789012345678901234567890}'
    request = b'{"custom_id":"a","method":"POST","url":"%b","body":%b}' % (CHAT_COMPLETIONS.encode(), body)
    bench.engine.spelled = lambda answer: answer.replace(b"{", b"{  ", 1)
    batch, _, _ = await _run(bench, request, CHAT_COMPLETIONS)
    assert bench.engine.contents == [body]
    content = openai_client(bench.service).files.content(batch.output_file_id).read()
    assert content.count(b"\n") == 1
    assert b'"body":{  "choices":[{"index":0,' in content


async def test_line_feeds_in_an_answer_never_break_the_lines_of_the_output_file(bench: Bench) -> None:
    bench.engine.spelled = lambda answer: answer.replace(b"{", b"\n{\r\n", 1)
    _, answers, _ = await _run(bench, file_of(line(n) for n in range(5)), CHAT_COMPLETIONS)
    assert len(answers) == 5


async def test_what_the_engine_refuses_is_a_line_of_the_error_file_with_its_own_words(bench: Bench) -> None:
    bench.engine.refused_word = "huge"
    long = {"messages": [{"role": "user", "content": "huge"}]}
    _, answers, errors = await _run(bench, file_of([line(0), line(1, body=long), line(2)]), CHAT_COMPLETIONS)
    assert [answer["custom_id"] for answer in answers] == ["row-0", "row-2"]
    assert [(error["custom_id"], error["error"]) for error in errors] == [("row-1", None)]
    assert errors[0]["response"]["status_code"] == 400
    assert errors[0]["response"]["body"]["error"]["param"] == "input_tokens"


async def test_a_row_that_a_living_engine_fails_on_again_and_again_is_a_line_of_the_error_file(bench: Bench) -> None:
    bench.engine.always[1] = "500"
    _, answers, errors = await _run(bench, file_of(line(n) for n in range(3)), CHAT_COMPLETIONS)
    assert len(answers) == 2
    assert errors[0]["response"]["status_code"] == 500
    assert errors[0]["response"]["body"]["error"]["code"] == "engine_error"


@pytest.mark.parametrize(
    ("description", "endpoints"),
    [
        (None, {CHAT_COMPLETIONS: None}),
        ([], {CHAT_COMPLETIONS: None}),
        ({"paths": {}}, {CHAT_COMPLETIONS: None}),
        ({"paths": {"/v1/embeddings": {"post": {}}}}, {EMBEDDINGS: None}),
        ({"paths": {"/v1/embeddings": {"get": {}}}}, {CHAT_COMPLETIONS: None}),
        (
            DESCRIPTION,
            {
                CHAT_COMPLETIONS: ["messages", "model", "seed"],
                COMPLETIONS: ["input", "model", "prompt"],
                EMBEDDINGS: ["dimensions", "input", "model", "prompt"],
                RESPONSES: ["input", "model", "prompt"],
            },
        ),
    ],
)
def test_an_engine_serves_what_it_describes(description: Any, endpoints: dict[str, list[str] | None]) -> None:
    assert described_endpoints(description) == endpoints


COMPLETION = b'{"choices":[{"text":"x","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":null}}'
ANSWERS: dict[str, tuple[bytes, bytes]] = {
    CHAT_COMPLETIONS: (
        b'{"choices":[{"message":{"content":null},"finish_reason":"tool_calls"}]}',
        b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"},{"message":{},"finish_reason":"abort"}]}',
    ),
    COMPLETIONS: (COMPLETION, COMPLETION.replace(b'"stop"', b'"abort"')),
    EMBEDDINGS: (b'{"data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":3}}', b'{"data":[]}'),
    RESPONSES: (b'{"status":"incomplete","usage":null}', b'{"status":"failed"}'),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_answer_counts_whole_only_if_it_says_that_it_is_one(endpoint: str) -> None:
    good, bad = ANSWERS[endpoint]
    result = judge(4, 200, good, AnswerCheck(endpoint, whole=True))
    assert (result.status, result.status_code, bytes(result.response)) == ("success", 200, good)
    for wrong in (bad, b"", b"[]", b"<html>", good[:-1], good.replace(b'"', b'"\xff', 1)):
        with pytest.raises(NotTheRowsFaultError):
            judge(4, 200, wrong, AnswerCheck(endpoint, whole=True))


@pytest.mark.parametrize(
    ("status", "body", "whose"),
    [
        (400, b'{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}', "row"),
        (422, b"<html>", "row"),
        (404, b'{"error":{"message":"No response with id x.","param":"response_id","code":404}}', "row"),
        (404, b'{"error":{"message":"The model `x` does not exist.","param":"model","code":404}}', "engine"),
        (404, b'{"detail":"Not Found"}', "engine"),
        (500, b'{"error":{"message":"EngineCore encountered an issue."}}', "engine"),
        (429, b"", "engine"),
    ],
)
def test_a_refusal_is_the_rows_only_where_it_speaks_of_the_row(status: int, body: bytes, whose: str) -> None:
    if whose == "engine":
        with pytest.raises(NotTheRowsFaultError):
            judge(4, status, body, AnswerCheck(whole=True))
        return
    result = judge(4, status, body, AnswerCheck(whole=True))
    assert (result.status, result.status_code) == ("error", status)
    error = msgspec.json.decode(result.response)["error"]
    assert error["message"] in body.decode()


def test_an_engines_failure_reads_as_an_openai_error() -> None:
    result = engine_error(4, "HTTP 500", whole=True)
    assert msgspec.json.decode(result.response) == {
        "error": {"message": "HTTP 500", "type": "server_error", "param": None, "code": "engine_error"}
    }
    assert not engine_error(4, "HTTP 500", whole=False).response


def test_an_answer_on_several_lines_is_put_on_one_and_any_other_is_left_alone() -> None:
    assert bytes(one_line(b'{ "a":\n 1.0, "b": "x\\n" }')) == b'{"a":1.0,"b":"x\\n"}'
    assert bytes(one_line(b'{ "a": 1.0 }')) == b'{ "a": 1.0 }'


async def test_an_engine_that_does_not_say_what_it_serves_is_asked_again_and_not_taken_for_a_smaller_one(
    bench: Bench,
) -> None:
    bench.engine.model, bench.engine.description, bench.engine.description_troubles = "m", DESCRIPTION, 2
    async with bench.worker():
        [served] = await soon(lambda: bench.service.client.models().data, what="the worker registers")
    assert sorted(served.endpoints) == sorted(ENDPOINTS)
    assert bench.engine.description_troubles == 0
