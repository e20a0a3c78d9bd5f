"""Tokens, prompts, rows and answers are in no line of any log, whatever goes wrong and however much is logged."""

from __future__ import annotations

import dataclasses
import json
import logging

import httpx
import pytest
from sqlalchemy import text

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import InvalidRequestError, NoAnswerError
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.requests import create, file_of, line, openai_client
from tests.service.two_teams import as_caller
from tests.worker.conftest import Bench
from tests.worker.fake_engine import MARK as ANSWERED

SECRET = "mulberry"
"""A word that is in the token, in the prompt and in every row, and comes back in every answer."""


def secret_service(service: RunningService) -> RunningService:
    token = f"bl-{SECRET}-0123456789-0123456789-0123456789"
    service.state.tokens.add(token, name="test", all_teams=True)
    return dataclasses.replace(as_caller(service, token), client=BatchClient(service.url, token))


def leaks(caplog: pytest.LogCaptureFixture) -> list[str]:
    shown = [f"{record.name}: {caplog.handler.format(record)}" for record in caplog.records]
    assert shown
    return [line for line in shown if SECRET in line]


def submit(service: RunningService, source: str, prompt: str, **more: object) -> str:
    messages = [Message(role="system", content=f"Think of {SECRET}."), Message(role="user", content=prompt)]
    spec = DatasetSpec(source=source, target=f"{source}.out.jsonl", messages=messages, constants={"c": SECRET}, **more)
    return service.client.submit(BatchCreate(dataset=spec, model="fake", metadata={"note": SECRET})).id


async def test_a_batch_leaves_no_word_of_its_rows_or_its_token_in_any_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bench.service = service = secret_service(bench.service)
    rows = [f'{{"text": "{SECRET} {number}"}}' for number in range(5)]
    (service.data_root / "t.jsonl").write_text("\n".join([*rows, f'{{"text": "{SECRET}', f'["{SECRET}"]']))
    bench.engine.always, bench.engine.refused_word = {3: "no reason"}, f"{SECRET} 4"
    bench.engine.troubles[1].extend(["500", "drop"])
    batch_id = submit(service, "t.jsonl", "{text} {c}")
    assert service.plan()
    async with bench.worker():
        await bench.answered(batch_id)
    assert service.assemble()
    shown = [row.get("llm_output") for row in service.client.results(batch_id)]
    assert any(output and output.startswith(ANSWERED) and SECRET in output for output in shown)
    assert leaks(caplog) == []


def test_a_request_file_leaves_no_word_in_any_log(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = openai_client(secret_service(service))
    body = {"messages": [{"role": "user", "content": SECRET}]}
    create(client, file_of([line(0, body=body), line(1, body={"x": SECRET}), f'{{"custom_id": "{SECRET}']))
    assert service.plan()
    assert leaks(caplog) == []


def test_what_is_refused_is_in_no_log(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = secret_service(service)
    (service.data_root / "t.jsonl").write_text(json.dumps({"text": SECRET}))
    with pytest.raises(InvalidRequestError, match="neither a column"):
        submit(service, "t.jsonl", f"{SECRET} {{nope}}")
    for headers in ({"Authorization": f"Bearer {SECRET}"}, {"Authorization": SECRET}):
        for content in (f'{{"{SECRET}', json.dumps({"dataset": {"messages": SECRET}})):
            assert httpx.post(f"{service.url}/v1/batches", headers=headers, content=content).status_code == 401
    headers = {"Authorization": f"Bearer {service.token}"}
    for content in (f'{{"{SECRET}', json.dumps({"dataset": {"messages": SECRET}}), SECRET * 100):
        assert httpx.post(f"{service.url}/v1/batches", headers=headers, content=content).status_code == 400
    assert leaks(caplog) == []


def test_trouble_with_the_store_is_logged_without_what_was_to_be_stored(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service = secret_service(service)
    (service.data_root / "t.jsonl").write_text(json.dumps({"text": SECRET}))
    with service.state.database.writing() as connection:
        connection.execute(text("CREATE TRIGGER full BEFORE INSERT ON batches BEGIN SELECT RAISE(FAIL, 'full'); END"))
    with pytest.raises(NoAnswerError):
        submit(service, "t.jsonl", "{text}")
    with service.state.database.writing() as connection:
        connection.execute(text("DROP TRIGGER full"))
        connection.execute(text("ALTER TABLE duties RENAME TO gone"))
    with BatchClient(service.url, service.token) as fresh, pytest.raises(NoAnswerError, match="store"):
        submit(dataclasses.replace(service, client=fresh), "t.jsonl", "{text}")
    assert any("broke off" in record.getMessage() for record in caplog.records)
    assert leaks(caplog) == []
