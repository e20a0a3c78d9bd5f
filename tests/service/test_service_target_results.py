"""The results of an ended table, whatever cursor is sent and whatever was done to the target by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import answer_all

ROWS = 'text\nfirst\n"two\nlines"\nthird\nSECRET\n'
TARGETS = ["t.csv", "t.jsonl", "t.csv.gz", "t.jsonl.zst", "t.parquet"]


def ended(service: RunningService, target: str) -> Batch:
    (service.data_root / "s.csv").write_text(ROWS)
    spec = DatasetSpec(source="s.csv", target=target, messages=[Message(role="user", content="{text}")])
    batch = service.client.submit(BatchCreate(dataset=spec, model="m"))
    answer_all(service, batch)
    return batch


def page(service: RunningService, batch: Batch, **query: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.get(f"{service.url}/v1/batches/{batch.id}/results", params=query, headers=headers, timeout=30)


@pytest.mark.parametrize("target", TARGETS)
def test_a_cursor_goes_on_where_its_page_ended(service: RunningService, target: str) -> None:
    batch = ended(service, target)
    texts, after = [], {}
    while (answer := page(service, batch, limit="1", **after).json())["data"]:
        texts += [row["columns"]["text"] for row in answer["data"]]
        after = {"after": answer["last_id"]}
    assert texts == ["first", "two\nlines", "third", "SECRET"]


@pytest.mark.parametrize("target", ["t.csv", "t.jsonl"])
def test_a_cursor_that_no_page_gave_is_refused_or_begins_where_a_row_does(service: RunningService, target: str) -> None:
    batch = ended(service, target)
    content = (service.data_root / target).read_bytes()
    answers = set()
    for offset in range(1, len(content) + 2):
        answer = page(service, batch, after=f"line-1.{offset}")
        answers.add(answer.status_code)
        if answer.status_code == 400:
            assert answer.json()["error"]["code"] == "invalid_cursor"
        else:
            assert answer.status_code == 200, answer.text
            assert content[offset - 1 : offset] == b"\n"
            assert len(answer.json()["data"]) == 3
    assert answers == {200, 400}
    for cursor in ("line-0.3", "line-1.999999999999999", "line-3.1", f"line-1.{len(content)}"):
        assert page(service, batch, after=cursor).json()["error"]["code"] == "invalid_cursor", cursor


def edit(path: Path, how: str) -> None:
    """Spoils a file; what begins with ``same`` leaves its size as it is."""
    content = path.read_bytes()
    spoilt = {
        "garbage": b"\xff\x00 no table",
        "nothing": b"",
        "names alone": content[: content.index(b"\n") + 1] if b"\n" in content else content[:4],
        "an object": b'{"a":1}\n',
        "same size of garbage": b"\xff" * len(content),
        "same size of lines": b"\n" * len(content),
        "same size of numbers": b"1\n" * (len(content) // 2) + b"1" * (len(content) % 2),
        "same size without its statuses": content.replace(b"success", b"SECRETS"),
        "same size without its end": content[: len(content) // 2] + b" " * (len(content) - len(content) // 2),
    }[how]
    path.write_bytes(spoilt)


HOW = ["garbage", "nothing", "names alone", "an object"]
HOW += [
    f"same size {what}" for what in ("of garbage", "of lines", "of numbers", "without its statuses", "without its end")
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_was_edited_is_gone_and_nothing_of_it_is_logged(
    service: RunningService, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    batch = ended(service, target)
    path = service.data_root / target
    whole = path.read_bytes()
    last = page(service, batch, limit="1").json()["last_id"]
    for how in HOW:
        edit(path, how)
        if path.read_bytes() == whole:  # a compressed file says no `success`
            continue
        with caplog.at_level(logging.DEBUG):
            answer = page(service, batch)
            later = page(service, batch, after=last)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "target_gone"), (how, answer.text)
        assert later.json()["error"]["code"] in ("target_gone", "invalid_cursor"), (how, later.text)
        assert "SECRET" not in caplog.text + answer.text + later.text
        path.write_bytes(whole)
    assert len(page(service, batch).json()["data"]) == 4
