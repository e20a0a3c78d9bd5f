"""What is wrong with a request file is said with its line, and nothing of the file runs."""

from __future__ import annotations

import codecs
import dataclasses
import json
from typing import Any

import pytest

from airflow_batch_llm.models import CHAT_COMPLETIONS, EMBEDDINGS, RESPONSES
from airflow_batch_llm.service import request_file
from airflow_batch_llm.service.body_fields import known_fields
from airflow_batch_llm.settings import Limits
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, finish, line, lines_of, openai_client

Wrong = tuple[str, bytes, list[tuple[int | None, str, str | None]]]

BROKEN: list[Wrong] = [
    ("no JSON", file_of([line(0), '{"custom_id": "x"', line(2)]), [(2, "invalid_json_line", None)]),
    ("not an object", file_of([line(0), "[1, 2]"]), [(2, "invalid_json_line", None)]),
    ("not UTF-8", file_of([line(0), b'{"custom_id": "\xff"}']), [(2, "invalid_utf8", None)]),
    ("nested without end", file_of([line(0), "[" * 100_000]), [(2, "invalid_json_line", None)]),
    (
        "an id twice",
        file_of([line(0), line(1), line(0), line(1)]),
        [(n, "duplicate_custom_id", "custom_id") for n in (3, 4)],
    ),
    (
        "no id",
        file_of([{"method": "POST", "url": CHAT_COMPLETIONS, "body": {}}]),
        [(1, "missing_required_parameter", "custom_id")],
    ),
    ("an empty id", file_of([{**line(0), "custom_id": ""}]), [(1, "invalid_custom_id", "custom_id")]),
    (
        "an id of 513 characters",
        file_of([{**line(0), "custom_id": "x" * 513}]),
        [(1, "invalid_custom_id", "custom_id")],
    ),
    ("an id that is a number", file_of([{**line(0), "custom_id": 7}]), [(1, "invalid_custom_id", "custom_id")]),
    ("another method", file_of([{**line(0), "method": "GET"}]), [(1, "invalid_method", "method")]),
    ("another endpoint", file_of([line(0), line(1, endpoint=EMBEDDINGS)]), [(2, "mismatched_endpoint", "url")]),
    (
        "no body",
        file_of([{"custom_id": "a", "method": "POST", "url": CHAT_COMPLETIONS}]),
        [(1, "missing_required_parameter", "body")],
    ),
    ("a body that is a text", file_of([{**line(0), "body": "x"}]), [(1, "invalid_body", "body")]),
    ("no model", file_of([{**line(0), "body": {"messages": []}}]), [(1, "missing_required_parameter", "body.model")]),
    ("a model that is none", file_of([line(0, body={"model": 3})]), [(1, "invalid_model", "body.model")]),
    ("two models", file_of([line(0), line(1, body={"model": "other"})]), [(2, "mismatched_model", "body.model")]),
    ("a stream", file_of([line(0, body={"stream": True})]), [(1, "stream_not_supported", "body.stream")]),
    (
        "a role that is none",
        file_of([line(0, body={"messages": [{"role": "nope"}]})]),
        [(1, "invalid_role", "body.messages")],
    ),
    (
        "a role that is a list",
        file_of([line(0, body={"messages": [{"role": ["user"]}]})]),
        [(1, "invalid_role", "body.messages")],
    ),
    (
        "a number that is none",
        file_of([line(0), line(1, body={"max_tokens": 7})]).replace(b'"max_tokens": 7', b'"max_tokens": 1e400'),
        [(2, "invalid_value", "body")],
    ),
    (
        "a field that nobody knows",
        file_of([line(0, body={"guided_json": {}})]),
        [(1, "unknown_parameter", "body.guided_json")],
    ),
    ("a misspelt field", file_of([line(0, body={"max_tokns": 3})]), [(1, "unknown_parameter", "body.max_tokns")]),
    ("nothing", b"", [(None, "empty_file", None)]),
    ("blank lines alone", b"\n \r\n\n", [(None, "empty_file", None)]),
    (
        "several at once",
        file_of([line(0), "{", line(2), line(0)]),
        [(2, "invalid_json_line", None), (4, "duplicate_custom_id", "custom_id")],
    ),
]


@pytest.mark.parametrize(("content", "errors"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_file_fails_as_a_whole_with_the_lines_that_are_wrong(
    service: RunningService, content: bytes, errors: list[tuple[int | None, str, str | None]]
) -> None:
    client = openai_client(service)
    batch = create(client, content)
    finish(service)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert [(error.line, error.code, error.param) for error in batch.errors.data or []] == errors
    assert all(error.message and error.message.endswith(".") for error in batch.errors.data or [])
    assert batch.failed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    kept = {path.name for path in service.settings.storage_root.rglob("*") if path.is_file()}
    assert kept == {batch.input_file_id}


def test_a_background_response_is_refused(service: RunningService) -> None:
    client = openai_client(service)
    content = file_of([line(0, endpoint=RESPONSES, body={"background": True})])
    batch = create(client, content, endpoint=RESPONSES)
    service.plan()
    assert client.batches.retrieve(batch.id).errors.data[0].code == "background_not_supported"  # type: ignore[union-attr,index]


def test_what_cannot_change_an_answer_and_what_is_null_is_accepted(service: RunningService) -> None:
    harmless: dict[str, Any] = {"store": True, "user": "u", "service_tier": "flex", "metadata": {"a": "b"}}
    harmless |= {"safety_identifier": "s", "prompt_cache_key": "k", "stream": False, "audio": None}
    client = openai_client(service)
    batch = create(client, file_of([line(0, body=harmless)]))
    finish(service)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_blank_lines_a_byte_order_mark_and_carriage_returns_are_no_requests(service: RunningService) -> None:
    content = codecs.BOM_UTF8 + b"\n\n".join(json.dumps(line(number)).encode() + b"\r" for number in range(3))
    client = openai_client(service)
    batch = create(client, content)
    finish(service)
    batch = client.batches.retrieve(batch.id)
    assert [row["custom_id"] for row in lines_of(client, batch.output_file_id)] == ["row-0", "row-1", "row-2"]


def test_the_engines_own_description_decides_which_fields_it_knows(service: RunningService) -> None:
    AnsweringWorker(service, endpoints=[CHAT_COMPLETIONS], body_fields=["messages", "model", "brand_new"])
    client = openai_client(service)
    known = create(client, file_of([line(0, body={"brand_new": 1})]))
    unknown = create(client, file_of([line(0, body={"seed": 1})]))
    while service.plan():
        pass
    assert client.batches.retrieve(known.id).status == "in_progress"
    errors = client.batches.retrieve(unknown.id).errors
    assert [error.param for error in (errors.data if errors else None) or []] == ["body.seed"]


def test_the_check_ends_after_a_hundred_wrong_lines(service: RunningService) -> None:
    client = openai_client(service)
    batch = create(client, file_of(["{"] * 1_000))
    service.plan()
    errors = client.batches.retrieve(batch.id).errors
    assert errors is not None
    assert [error.line for error in errors.data or []] == [*range(1, 101), None]


def test_a_line_without_end_is_refused_and_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_file, "ROW_BYTES", 100)
    asked = []

    class Endless:
        def readline(self, size: int) -> bytes:
            asked.append(size)
            return b"x" * size

    file = request_file.RequestFile(Endless(), CHAT_COMPLETIONS, known_fields(CHAT_COMPLETIONS, None), Limits())  # type: ignore[arg-type]
    assert list(file.requests()) == []
    assert [error.code for error in file.errors] == ["line_too_long"]
    assert asked == [101]


@pytest.mark.parametrize(
    ("limits", "endpoint", "bodies", "sentence"),
    [
        (Limits(file_rows=2), CHAT_COMPLETIONS, [{}] * 2, None),
        (Limits(file_rows=2), CHAT_COMPLETIONS, [{}] * 3, "The file has 3 requests or more, and the limit is 2."),
        (Limits(embedding_inputs=4), EMBEDDINGS, [{"input": ["a", "b"]}, {"input": [1, 2, 3]}, {"input": "x"}], None),
        (
            Limits(embedding_inputs=4),
            EMBEDDINGS,
            [{"input": ["a", "b"]}, {"input": [[1], [2], [3]]}],
            "The file has 5 embedding inputs or more, and the limit is 4.",
        ),
    ],
)
def test_a_limit_names_itself_and_the_value(
    service: RunningService, limits: Limits, endpoint: str, bodies: list[dict[str, Any]], sentence: str | None
) -> None:
    service = dataclasses.replace(service, settings=dataclasses.replace(service.settings, limits=limits))
    client = openai_client(service)
    content = file_of(line(number, endpoint=endpoint, body=body) for number, body in enumerate(bodies))
    batch = create(client, content, endpoint=endpoint)
    service.plan()
    errors = client.batches.retrieve(batch.id).errors
    assert [(error.code, error.message) for error in (errors.data if errors else None) or []] == (
        [("limit_exceeded", sentence)] if sentence else []
    )
