"""Rows to look at: input, prompt and output side by side, from wherever they can be had without reading a table."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import logging
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.service import numbered_rows, row_routes
from airflow_batch_llm.service.row_walk import Patience
from airflow_batch_llm.service.shown_rows import RowFilter, shown_rows
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.counted_reads import CountedReads
from tests.service.keeping import House
from tests.service.looking import (
    PROMPT,
    Answers,
    by_number,
    call,
    end,
    give,
    half_done,
    prompt_of,
    rows,
    submit,
    table,
)
from tests.service.requests import create, file_of, finish, line, openai_client

SAID = {
    "type": "object",
    "properties": {"said": {"type": "string"}, "sure": {"type": "boolean"}},
    "required": ["said", "sure"],
}


def test_a_row_has_its_input_prompt_and_output_while_its_batch_runs(service: RunningService) -> None:
    table(service)
    batch = submit(service)
    half_done(service)
    page = rows(service, batch)
    assert page["order"] == "committed"
    assert sorted(by_number(page)) == [0, 1, 2]
    shown = by_number(page)[1]
    assert shown["input"] == {"text": "text 1", "n": 1}
    assert shown["prompt"] == prompt_of(1)
    assert (shown["output"], shown["finish_reason"], shown["prompt_tokens"]) == ("answer 1", "stop", 1)
    assert (shown["missing"], shown["shortened"]) == (None, False)


@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl"])
def test_rows_of_json_lines_have_their_input_while_their_batch_runs(service: RunningService, target: str) -> None:
    """They are staged as lines, and get their types once all were seen."""
    lines = [f'{{"text":"text {n}","n":{n}}}' for n in range(6)]
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    batch = submit(service, source="s.jsonl", target=target)
    half_done(service)
    shown = by_number(rows(service, batch))[1]
    assert (shown["input"], shown["prompt"], shown["missing"]) == ({"text": "text 1", "n": 1}, prompt_of(1), None)


def test_pages_follow_one_another_and_a_running_batch_is_read_on_from_the_last(service: RunningService) -> None:
    table(service)
    batch = submit(service)
    half_done(service)
    seen: list[int] = []
    after: dict[str, Any] = {}
    for _ in range(3):
        page = rows(service, batch, limit=1, **after)
        seen += by_number(page)
        after = {"after": page["last_id"]}
    assert not page["has_more"]
    assert rows(service, batch, **after)["data"] == []
    service.end_leases()
    AnsweringWorker(service, name="second").work()
    seen += by_number(rows(service, batch, **after))
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl", "t.csv", "t/"])
def test_a_row_of_an_ended_batch_is_as_it_was_in_the_run(service: RunningService, target: str) -> None:
    table(service)
    batch = end(service, submit(service, target=target), failing=[4])
    page = rows(service, batch)
    assert page["order"] == "source"
    assert [row["row"] for row in page["data"]] == list(range(6))
    for row in page["data"]:
        assert row["input"] == {"text": f"text {row['row']}", "n": row["row"]}
        assert row["prompt"] == prompt_of(row["row"])
    assert page["data"][4]["error"] == "engine_refused: row 4 is refused"
    assert page["data"][4]["output"] in (None, "")
    assert page["data"][5]["output"] == "answer 5"


@BOTH_STORES
@pytest.mark.parametrize("ended", [False, True])
def test_failed_rows_are_found_without_a_look_at_other_parts(
    service: RunningService, ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(service, 200)
    batch = submit(service)
    worker = AnsweringWorker(service, part_rows=10, failing=[77], invalid=[150])
    assert worker.work() == 200
    if ended:
        assert service.assemble()
    reads = CountedReads(monkeypatch)
    page = rows(service, batch, status="failed")
    assert {row["row"]: row["status"] for row in page["data"]} == {77: "error", 150: "invalid_output"}
    assert page["looked_at"] == 20
    assert sum("/chunks/" in key and "plan" not in key for key in reads.opened) == 2
    assert by_number(page)[150]["output"] == "noise 150"
    assert by_number(page)[77]["input"] == {"text": "text 77", "n": 77}
    assert [row["row"] for row in rows(service, batch, status="invalid_output")["data"]] == [150]
    assert rows(service, batch, status="failed", after=page["last_id"])["data"] == []


def test_rows_that_failed_before_anything_ran_are_found_too(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_text('{"text":"a","n":0}\n[1]\n{"text":"c","n":2}\n')
    batch = submit(service, source="s.jsonl", target="t.jsonl")
    (failed,) = rows(service, batch, status="failed")["data"]
    assert (failed["row"], failed["input"], failed["prompt"]) == (1, None, None)
    assert failed["error"].startswith("invalid_json_line: Line 2 holds")
    assert failed["missing"] == "It was not asked, since its line of the source could not be read as a row."


def test_a_filter_gives_up_after_so_many_rows_and_the_next_page_goes_on_there(service: RunningService) -> None:
    table(service, 60)
    batch = end(service, submit(service))
    record = service.state.batches.get("default", batch.id)
    wanted, after, looked = RowFilter(search="ANSWER 55"), None, []
    while True:
        page = shown_rows(service.state, record, after=after, limit=5, wanted=wanted, patience=Patience(rows=25))
        looked.append(page.looked_at)
        after = page.last_id
        if page.data or not page.has_more:
            break
    assert looked == [25, 25, 10]
    assert [row.row for row in page.data] == [55]
    late = iter([0.0, 1.0, 99.0])
    page = shown_rows(
        service.state, record, after=None, limit=5, wanted=wanted, patience=Patience(clock=lambda: next(late))
    )
    assert (page.looked_at, page.has_more, page.data) == (2, True, [])


def test_a_search_finds_what_stands_in_the_output_or_the_error_in_whatever_case(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service), failing=[4], invalid=[2])
    assert [row["row"] for row in rows(service, batch, search="AnSwEr 5")["data"]] == [5]
    assert [row["row"] for row in rows(service, batch, search="IS REFUSED")["data"]] == [4]
    assert [row["row"] for row in rows(service, batch, search="text 5")["data"]] == []
    assert [row["row"] for row in rows(service, batch, status="failed", search="noise")["data"]] == [2]


@pytest.mark.parametrize("asked", [{"output_schema": SAID}, {"parameters": {"n": 2}}], ids=["fields", "samples"])
def test_a_search_looks_at_the_values_and_not_at_how_json_writes_them(
    service: RunningService, asked: dict[str, Any]
) -> None:
    table(service, 2)
    batch = submit(service, **asked)
    said = ['Zu Köln am "Rhein"', "Bonn"]
    if "output_schema" in asked:
        given: list[dict[str, Any]] = [{"output": json.dumps({"said": text, "sure": True})} for text in said]
    else:
        given = [{"outputs": [text, "two"]} for text in said]
    give(service, given)
    for search, found in (("KÖLN", [0]), ('"rhein"', [0]), ("bonn", [1]), ("said", []), ("u00f6", [])):
        assert [row["row"] for row in rows(service, batch, search=search)["data"]] == found, search


@pytest.mark.parametrize("cursor", ["nonsense", "row-1", "line-0.3", "part-", "line-1.99999"])
def test_a_cursor_that_is_none_is_refused(service: RunningService, cursor: str) -> None:
    table(service)
    batch = end(service, submit(service, target="t.jsonl"))
    answer = call(service, batch.id, after=cursor)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")
    assert call(service, batch.id, after="line-1.0", status="failed").json()["error"]["code"] == "invalid_cursor"


def test_after_the_staged_bytes_went_inputs_and_prompts_come_from_the_target(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service), failing=[3])
    House(service).later(2)
    (service.data_root / "s.parquet").unlink()
    (failed,) = rows(service, batch, status="failed")["data"]
    assert (failed["input"], failed["prompt"], failed["missing"]) == ({"text": "text 3", "n": 3}, prompt_of(3), None)
    assert by_number(rows(service, batch))[2]["prompt"] == prompt_of(2)


@pytest.mark.parametrize("name", ["s.parquet", "s.jsonl", "s.csv", "s.jsonl.gz"])
@pytest.mark.parametrize("dropped", [False, True])
def test_columns_that_the_target_does_not_repeat_come_from_the_source_by_row_number(
    service: RunningService, name: str, dropped: bool
) -> None:
    write(service, name)
    batch = end(service, submit(service, source=name, target="t.parquet", passthrough=["n"]), failing=[3])
    if dropped:
        House(service).later(2)
    for page in (rows(service, batch), rows(service, batch, status="failed")):
        shown = by_number(page)[3]
        assert {key: str(value) for key, value in shown["input"].items()} == {"text": "text 3", "n": "3"}
        assert (shown["prompt"], shown["missing"]) == (prompt_of(3), None)


def write(service: RunningService, name: str) -> None:
    lines = [{"text": f"text {n}", "n": n} for n in range(6)]
    if name.endswith("parquet"):
        table(service)
    elif name.endswith("csv"):
        (service.data_root / name).write_text("text,n\n" + "".join(f"{one['text']},{one['n']}\n" for one in lines))
    else:
        content = "".join(json.dumps(one) + "\n" for one in lines).encode()
        (service.data_root / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_source_that_is_not_what_was_planned_is_not_shown(service: RunningService, how: str) -> None:
    table(service)
    batch = end(service, submit(service, passthrough=["n"]))
    House(service).later(2)
    if how == "gone":
        (service.data_root / "s.parquet").unlink()
    else:
        table(service, 7)
    shown = by_number(rows(service, batch))[3]
    assert (shown["input"], shown["prompt"], shown["output"]) == ({"n": 3}, None, "answer 3")
    said = {"changed": "has changed since the batch was submitted", "gone": "does not exist"}
    assert said[how] in shown["missing"]


def test_a_row_far_from_the_start_of_its_file_is_not_read_and_said_to_be_missing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps({"text": f"text {n}", "n": n, "more": "x" * 1000}) + "\n" for n in range(400))
    (service.data_root / "s.jsonl").write_text(lines)
    batch = end(service, submit(service, source="s.jsonl", target="t.parquet", passthrough=["n"]))
    House(service).later(2)
    monkeypatch.setattr(numbered_rows, "MOST_TEXT_BYTES", 100_000)
    monkeypatch.setattr(numbered_rows.Allowance.__init__, "__defaults__", (numbered_rows.MOST_BYTES, 100_000, 1 << 30))
    near, far = (by_number(rows(service, batch, after=f"line-{n}.0"))[n] for n in (5, 390))
    assert (near["input"]["text"], near["missing"]) == ("text 5", None)
    assert far["input"] == {"n": 390}
    assert "too far from the beginning of its file" in far["missing"]


def test_rows_of_several_files_are_found_in_theirs_with_what_its_folders_say(service: RunningService) -> None:
    for day, first in (("2026-01-01", 0), ("2026-01-02", 3)):
        (service.data_root / f"in/day={day}").mkdir(parents=True)
        found = {"text": [f"text {n}" for n in range(first, first + 3)]}
        pq.write_table(pa.table(found), service.data_root / f"in/day={day}/a.parquet")
    messages = [Message(role="user", content="{day}: {text}")]
    for number, (target, dropped) in enumerate(
        (("t.parquet", False), ("u/", False), ("v.parquet", True), ("w/", True))
    ):
        batch = submit(service, source="in/", target=target, messages=messages, passthrough=[] if number % 2 else None)
        end(service, batch, failing=[4], name=f"w{number}")
        if dropped:
            House(service).later(2)
        for page in (rows(service, batch), rows(service, batch, status="failed")):
            shown = by_number(page)[4]
            assert shown["prompt"] == [{"role": "user", "content": "2026-01-02: text 4"}], target
            assert shown["input"] == {"text": "text 4"}
            assert shown["missing"] is None


def test_an_uploaded_table_is_read_as_any_until_it_is_deleted(service: RunningService) -> None:
    table(service)
    content = (service.data_root / "s.parquet").read_bytes()
    uploaded = openai_client(service).files.create(file=("s.parquet", content), purpose="dataset")  # type: ignore[arg-type]
    batch = end(service, submit(service, source=uploaded.id, passthrough=["n"]))
    House(service).later(2)
    assert by_number(rows(service, batch))[2]["prompt"] == prompt_of(2)
    openai_client(service).files.delete(uploaded.id)
    shown = by_number(rows(service, batch))[2]
    assert (shown["input"], shown["prompt"]) == ({"n": 2}, None)
    assert "cannot be read any more" in shown["missing"]


def test_a_row_that_equals_another_has_a_prompt_and_the_same_answer(service: RunningService) -> None:
    table(service, 3, text=["same", "other", "same"], n=[1, 1, 1])
    AnsweringWorker(service, engine_identity="e", name="known").link  # noqa: B018 (its registration)
    batch = end(service, submit(service), engine_identity="e")
    assert service.client.get(batch.id).progress.rows_duplicate == 1
    shown = by_number(rows(service, batch))
    assert shown[2]["prompt"] == shown[0]["prompt"] != shown[1]["prompt"]
    assert shown[2]["output"] == shown[0]["output"]


def test_a_batch_whose_target_was_removed_is_shown_from_its_parts(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service))
    (service.data_root / "t.parquet").unlink()
    page = rows(service, batch)
    assert page["order"] == "committed"
    assert by_number(page)[4]["prompt"] == prompt_of(4)


def test_after_its_keep_time_a_batch_has_no_rows_to_look_at(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service))
    House(service).later(40)
    for what in ("rows", "answers"):
        assert call(service, batch.id, what).json()["error"]["code"] == "results_expired"


def test_values_of_any_kind_are_shown_in_json_and_long_ones_cut(service: RunningService) -> None:
    odd: dict[str, list[Any]] = {
        "image": [b"\xff" * 50],
        "huge": [2**60],
        "none": [None],
        "nan": [float("nan")],
        "nested": [{"a": [{"b": "x" * 9_000}]}],
        "when": [datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)],
        "text": ["é" * 10_000],
        "n": [0],
    }
    table(service, 1, **odd)
    batch = submit(service)
    half_done(service, done=1)
    for _ in range(2):
        (shown,) = rows(service, batch)["data"]
        assert shown["shortened"]
        assert shown["input"]["image"] == "(bytes)"
        assert shown["input"]["huge"] == str(2**60)
        assert shown["input"]["nested"]["a"][0]["b"] == "x" * 4_000
        assert shown["input"]["text"] == "é" * 4_000
        assert shown["prompt"][1]["content"] == "é" * 4_000
        assert shown["input"]["none"] is None
        assert "1970-01-01" in shown["input"]["when"]
        service.end_leases()
        AnsweringWorker(service, name="second").work()
        service.assemble()


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv.zst", "t.jsonl"])
def test_rows_far_from_the_beginning_of_a_file_without_places_are_refused_with_what_to_do(
    service: RunningService, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(service, 60)
    batch = end(service, submit(service, target=name))
    monkeypatch.setattr(Patience.__init__, "__defaults__", (20, 3.0, time.monotonic, 20, 0, 0))
    assert [row["row"] for row in rows(service, batch, after="line-20.0", limit=2)["data"]] == [20, 21]
    far = call(service, batch.id, after="line-50.0", limit=2)
    assert (far.status_code, far.json()["error"]["code"]) == (400, "rows_too_far")
    assert "Download the target" in far.json()["error"]["message"]


def test_time_ends_the_way_to_a_page_too(service: RunningService) -> None:
    table(service, 60)
    batch = end(service, submit(service, target="t.jsonl.gz"))
    record = service.state.batches.get("default", batch.id)
    late = iter([0.0, 1.0, 99.0])
    patience = Patience(clock=lambda: next(late))
    with pytest.raises(InvalidRequestError, match="after 2 rows"):
        shown_rows(service.state, record, after="line-50.0", limit=5, wanted=RowFilter(), patience=patience)


def test_who_looks_at_rows_holds_nobody_else_up(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    table(service)
    batch = submit(service)
    go_on, began = threading.Event(), threading.Semaphore(0)
    looks = row_routes.shown_rows

    def slow(*given: Any, **more: Any) -> Any:
        began.release()
        go_on.wait(60)
        return looks(*given, **more)

    monkeypatch.setattr(row_routes, "shown_rows", slow)
    with ThreadPoolExecutor(32) as callers:
        answers = [callers.submit(call, service, batch.id) for _ in range(32)]
        try:
            assert all(began.acquire(timeout=30) for _ in range(4))
            headers = {"Authorization": f"Bearer {service.token}"}
            assert httpx.get(f"{service.url}/v1/models", headers=headers, timeout=10).status_code == 200
        finally:
            go_on.set()
        assert {answer.result().status_code for answer in answers} == {200}


def test_a_page_of_rows_with_many_long_values_stays_small(service: RunningService) -> None:
    def values() -> list[Any]:
        return [[f"{row}-{place}-" + "lorem ipsum " * 300 for place in range(50)] for row in range(5)]

    numbers = [[list(range(100))] * 100] * 5
    table(service, 5, **{f"c{column}": values() for column in range(6)}, numbers=numbers)
    messages = [Message(role="user", content="{text}" + "long " * 1_000)] * 40
    batch = submit(service, messages=messages)
    half_done(service, done=5)
    pages = [call(service, batch.id)]
    service.end_leases()
    end(service, batch, name="second")
    for page in [*pages, call(service, batch.id)]:
        assert len(page.content) < 5 * 100_000
        for shown in page.json()["data"]:
            assert shown["shortened"]
            assert list(shown["input"])[-1] == "numbers"
            assert shown["output"] == f"answer {shown['row']}"
            assert shown["input"]["c0"][0].startswith(f"{shown['row']}-0-lorem")


def test_a_row_group_that_is_large_without_its_compression_is_not_read(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(service, 200, doc=[[f"{n}" + "x" * 2_000] for n in range(200)])
    batch = submit(service)
    half_done(service)
    assert by_number(rows(service, batch))[1]["missing"] is None
    limits = (numbered_rows.MOST_BYTES, numbered_rows.MOST_TEXT_BYTES, 300_000)
    monkeypatch.setattr(numbered_rows.Allowance.__init__, "__defaults__", limits)
    assert "in too large a row group" in by_number(rows(service, batch))[1]["missing"]


def test_of_many_columns_those_that_the_prompt_needs_are_shown_with_some_of_the_others(service: RunningService) -> None:
    table(service, **{f"c{n}": [n] * 6 for n in range(80)})
    messages = [Message(role="user", content="{c79}")]
    batch = submit(service, messages=messages)
    half_done(service)
    end_of_run = [rows(service, batch)]
    service.end_leases()
    end_of_run.append(rows(service, end(service, batch, name="second")))
    for page in end_of_run:
        shown = by_number(page)[1]
        assert shown["input"]["c79"] == 79
        assert 40 <= len(shown["input"]) <= 50
        assert shown["prompt"] == [{"role": "user", "content": "79"}]


def test_an_embedding_is_its_first_numbers_and_its_length(service: RunningService) -> None:
    table(service, 1)
    batch = submit(service, endpoint=EMBEDDINGS, input="{text}!")
    vector = base64.b64encode(struct.pack("<12f", *range(12))).decode()
    worker = Answers(service, {0: {"embedding": vector}})
    worker.work()
    running = rows(service, batch)
    assert service.assemble()
    for page in (running, rows(service, batch)):
        (shown,) = page["data"]
        assert shown["output"] == {"first": [0, 1, 2, 3, 4, 5, 6, 7], "length": 12}
        assert shown["prompt"] == [{"role": "input", "content": "text 0!"}]


SCHEMA = {
    "type": "object",
    "properties": {
        "why": {"type": "string"},
        "mood": {"enum": ["good", "bad"]},
        "sure": {"type": "boolean"},
    },
    "required": ["why", "mood", "sure"],
}


def test_an_answer_with_a_schema_is_its_fields_and_one_that_fits_none_its_text(service: RunningService) -> None:
    table(service, 3)
    batch = submit(service, output_schema=SCHEMA)
    give(
        service,
        [
            {"output": '{"why":"a","mood":"good","sure":true}'},
            {"output": '{"why":"b","mood":"bad","sure":false}'},
            {"output": "no json", "status": "invalid_output", "code": "not_json", "error": "It is none."},
        ],
    )
    shown = by_number(rows(service, batch))
    assert shown[0]["output"] == {"why": "a", "mood": "good", "sure": True}
    assert [shown[n]["label"] for n in range(3)] == ["good", "bad", None]
    assert shown[2]["output"] == "no json"
    assert [row["row"] for row in rows(service, batch, label="bad")["data"]] == [1]
    assert call(service, batch.id, "answers").json() == {
        "field": "mood",
        "counts": [{"answer": "bad", "rows": 1}, {"answer": "good", "rows": 1}],
        "rows_looked_at": 2,
        "rows_failed": 1,
        "rows_done": 3,
        "distinct": False,
    }


def test_several_samples_are_a_list(service: RunningService) -> None:
    table(service, 1)
    batch = submit(service, parameters={"n": 2})
    give(service, [{"outputs": ["a", "b"]}])
    assert rows(service, batch)["data"][0]["output"] == ["a", "b"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_request_has_its_messages_and_its_answers_text(service: RunningService, ended: bool) -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": "x"}]}]
    lines = [line(n, body={"messages": said if n == 2 else [{"role": "user", "content": f"q {n}"}]}) for n in range(4)]
    batch = create(openai_client(service), file_of(lines))
    if ended:
        finish(service, failing=[1])
    else:
        assert service.plan()
        AnsweringWorker(service, failing=[1]).work()
    shown = by_number(rows(service, batch))
    assert sorted(shown) == [0, 1, 2, 3]
    assert shown[3]["prompt"] == [{"role": "user", "content": "q 3"}]
    assert shown[2]["prompt"] == [{"role": "user", "content": "look\n(image_url)"}]
    assert (shown[3]["input"], shown[3]["output"], shown[3]["finish_reason"]) == (None, "answer 3", "stop")
    assert shown[1]["error"] == "400: row 1 is refused"
    assert [row["row"] for row in rows(service, batch, status="failed")["data"]] == [1]
    House(service).later(2)
    if ended:
        (failed,) = rows(service, batch, status="failed")["data"]
        assert failed["prompt"] is None
        assert "not kept any more" in failed["missing"]


def test_the_chunk_of_a_request_is_found_among_many(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line(n, body={"messages": [{"role": "user", "content": f"q {n}"}]}) for n in range(6_500)]
    batch = create(openai_client(service), file_of(lines))
    finish(service, part_rows=1_000)
    for first in (0, 1_995, 4_100, 6_495):
        for row in rows(service, batch, after=f"row-{first}")["data"]:
            assert row["prompt"] == [{"role": "user", "content": f"q {row['row']}"}]


def test_looking_at_rows_keeps_no_batch_going(service: RunningService) -> None:
    table(service)
    dataset = DatasetSpec(source="s.parquet", target="t.parquet", messages=PROMPT)
    batch = service.client.submit(BatchCreate(dataset=dataset, model="m", holder="h", pause_unwatched_after=600))
    assert service.plan()
    half_done(service)
    before = service.state.batches.get("default", batch.id)["unwatched_at"]
    for what in ("rows", "answers", "download"):
        call(service, batch.id, what)
    assert service.state.batches.get("default", batch.id)["unwatched_at"] == before


def test_neither_prompts_nor_results_are_logged(service: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    table(service, 2, text=["SECRET", "SECRET 2"], n=[1, 2])
    batch = end(service, submit(service, passthrough=["n"]), failing=[1])
    caplog.clear()
    for query in ({}, {"status": "failed"}, {"after": "line-1.9"}, {"label": "SECRET"}):
        assert "SECRET" not in call(service, batch.id, **query).headers.get("x", "")
    (service.data_root / "t.parquet").write_bytes(b"SECRET")
    call(service, batch.id)
    call(service, batch.id, "answers")
    call(service, batch.id, "download")
    service_says = [record for record in caplog.records if record.name.startswith("airflow_batch_llm")]
    assert not [
        record for record in service_says if "SECRET" in record.getMessage() or "SECRET" in str(record.exc_info)
    ]
