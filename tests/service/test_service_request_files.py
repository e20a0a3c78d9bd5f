"""Request files from upload to result files, with the unmodified `openai` package as the client."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from airflow_batch_llm.models import CHAT_COMPLETIONS, ENDPOINTS
from airflow_batch_llm.wire import ResultPage
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, finish, line, lines_of, openai_client


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_request_has_its_answer_under_its_own_id(service: RunningService, endpoint: str) -> None:
    client = openai_client(service)
    content = file_of(line(number, endpoint=endpoint, body={"user": f"u{number}"}) for number in range(10))
    batch = create(client, content, endpoint=endpoint)
    assert (batch.status, batch.request_counts.total) == ("validating", 0)
    finish(service)
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.error_file_id, batch.model) == ("completed", None, "m")
    assert batch.request_counts.model_dump() == {"total": 10, "completed": 10, "failed": 0}
    rows = lines_of(client, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(10)]
    for number, row in enumerate(rows):
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["body"]["echo"]["user"] == f"u{number}"
    assert len({row["id"] for row in rows}) == len({row["response"]["request_id"] for row in rows}) == 10


def test_a_body_and_its_answer_pass_through_byte_for_byte(service: RunningService) -> None:
    client = openai_client(service)
    body = '{ "model":"m",  "seed": 123456789012345678901234567890, "top_p":1.0, "messages":[] }'
    text = f'{{"custom_id":"a","method":"POST","url":"{CHAT_COMPLETIONS}","body":{body}}}'
    batch = create(client, text.encode())
    finish(service)
    content = client.files.content(client.batches.retrieve(batch.id).output_file_id or "").read()
    assert f'"body":{{"echo":{body},'.encode() in content


def test_a_batch_of_which_every_row_failed_is_completed_and_has_no_output_file(service: RunningService) -> None:
    client = openai_client(service)
    batch = create(client, file_of(line(number) for number in range(9)))
    finish(service, failing=range(9))
    batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts.model_dump() == {"total": 9, "completed": 0, "failed": 9}
    for number, row in enumerate(lines_of(client, batch.error_file_id)):
        assert row["custom_id"] == f"row-{number}"
        assert (row["error"], row["response"]["status_code"]) == (None, 400)
        assert row["response"]["body"]["error"]["message"] == f"row {number} is refused"


def test_results_can_be_read_while_the_batch_runs_and_each_once(service: RunningService) -> None:
    client = openai_client(service)
    batch = create(client, file_of(line(number) for number in range(20)))
    service.plan()
    worker = AnsweringWorker(service, failing={3})
    claim, lines = worker.claim()
    seen: list[Any] = []
    after = None
    for part in range(4):
        worker.link.extend(claim, [worker.store(claim, part, lines[part * 5 : part * 5 + 5])])
        page = _page(service, batch.id, after=after)
        assert len(page.data) == 5
        counts = client.batches.retrieve(batch.id).request_counts
        assert (counts.total, counts.completed + counts.failed) == (20, 5 * part + 5)
        seen += page.data
        after = page.last_id
    assert {row.custom_id for row in seen} == {f"row-{number}" for number in range(20)}
    assert {row.custom_id: row.status for row in seen}["row-3"] == "error"
    worker.link.commit(claim, [])
    service.assemble()
    rows = list(service.client.result_rows(batch.id))
    assert [row.row for row in rows] == list(range(20))
    assert sorted(seen, key=lambda row: row.row) == rows
    assert [row.row for row in service.client.result_rows(batch.id, status="error")] == [3]


def _page(service: RunningService, batch_id: str, **query: Any) -> ResultPage:
    query = {name: value for name, value in query.items() if value is not None}
    headers = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.get(f"{service.url}/v1/batches/{batch_id}/results", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return ResultPage.model_validate_json(answer.content)


def test_json_is_checked_line_by_line(service: RunningService) -> None:
    client = openai_client(service)
    batch = create(client, file_of([line(0), "{", json.dumps(line(0))]))
    service.plan()
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
