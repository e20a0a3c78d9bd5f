"""How often which answer was given: of all rows where these are few, else of a sample from all over the batch."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.service import answer_counts
from airflow_batch_llm.wire import BatchCreate, DatasetSpec
from tests.conftest import RunningService
from tests.service.counted_reads import CountedReads
from tests.service.looking import PROMPT, Answers, call, end, give, rows, submit, table


@pytest.mark.parametrize("ended", [False, True])
def test_choices_are_counted_and_a_choice_is_a_label(service: RunningService, ended: bool) -> None:
    table(service, 6)
    batch = submit(service, choices=["yes", "no"])
    given = [{"output": "no" if number == 4 else "yes", "confidence": 0.5} for number in range(6)]
    Answers(service, dict(enumerate(given))).work()
    if ended:
        assert service.assemble()
    answers = call(service, batch.id, "answers").json()
    assert answers["counts"] == [{"answer": "yes", "rows": 5}, {"answer": "no", "rows": 1}]
    assert (answers["field"], answers["rows_looked_at"], answers["rows_done"]) == ("llm_output", 6, 6)
    page = rows(service, batch, label="no")
    assert [(row["row"], row["label"]) for row in page["data"]] == [(4, "no")]


def test_of_many_answers_a_sample_from_all_over_the_batch_is_counted(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(service, 400, text=[f"{n:04}" for n in range(400)])
    batch = submit(service, choices=["early", "late"])
    given = {n: {"output": "early" if n < 200 else "late", "confidence": 1.0} for n in range(400)}
    worker = Answers(service, given, part_rows=20)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    lines.sort(key=lambda one: one.row)
    for number in range(20):
        worker.link.extend(claim, [worker.store(claim, number, lines[number * 20 : number * 20 + 20])])
    monkeypatch.setattr(answer_counts, "MOST_PARTS", 10)
    monkeypatch.setattr(answer_counts, "MOST_ROWS", 100)
    reads = CountedReads(monkeypatch)
    answers = call(service, batch.id, "answers").json()
    assert answers["counts"] == [{"answer": "early", "rows": 50}, {"answer": "late", "rows": 50}]
    assert (answers["rows_looked_at"], answers["rows_done"]) == (100, 400)
    assert len(reads.opened) == 10


def test_of_free_text_nothing_is_counted(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service))
    answers = call(service, batch.id, "answers").json()
    assert answers == {
        "field": None,
        "counts": [],
        "rows_looked_at": 0,
        "rows_failed": 0,
        "rows_done": 6,
        "distinct": False,
    }


def test_a_batch_that_is_being_planned_has_the_field_that_will_be_counted(service: RunningService) -> None:
    table(service)
    dataset = DatasetSpec(source="s.parquet", target="t.parquet", messages=PROMPT, choices=["yes", "no"])
    batch = service.client.submit(BatchCreate(dataset=dataset, model="m"))
    answers = call(service, batch.id, "answers").json()
    assert (answers["field"], answers["counts"]) == ("llm_output", [])


def test_rows_without_an_answer_have_no_share(service: RunningService) -> None:
    table(service, 4)
    batch = submit(service, choices=["yes", "no"])
    refused = {"status": "error", "code": "engine_refused", "error": "It is refused."}
    give(service, [{"output": "yes", "confidence": 1.0}] * 3 + [refused])
    answers = call(service, batch.id, "answers").json()
    assert sum(one["rows"] for one in answers["counts"]) == answers["rows_looked_at"] == 3
    assert (answers["rows_failed"], answers["rows_done"]) == (1, 4)


def same_and_others(service: RunningService, same: int = 90, **more: list[Any]) -> list[dict[str, Any]]:
    """A table in whose middle most rows equal one another, and its answers: these `a`, the others `b`."""
    others = [f"other {number}" for number in range(10)]
    table(service, same + 10, text=[*others[:5], *["same"] * same, *others[5:]], n=[1] * (same + 10), **more)
    Answers(service, {}, engine_identity="e", name="known")
    given = [{"output": "b", "confidence": 1.0}] * 5 + [{"output": "a", "confidence": 1.0}] * same
    return [*given, *[{"output": "b", "confidence": 1.0}] * 5]


@pytest.mark.parametrize("most", [10_000, 50])
@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl"])
def test_equal_rows_count_as_the_rows_that_they_are_or_it_is_said_that_they_do_not(
    service: RunningService, target: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_counts, "MOST_ROWS", most)
    given = same_and_others(service)
    batch = submit(service, target=target, choices=["a", "b"])
    Answers(service, dict(enumerate(given)), engine_identity="e").work()
    running = call(service, batch.id, "answers").json()
    assert service.assemble()
    ended = call(service, batch.id, "answers").json()
    assert running["distinct"]
    assert ended["distinct"] == (target == "t.jsonl")
    if target == "t.parquet":
        shares = {one["answer"]: one["rows"] / ended["rows_looked_at"] for one in ended["counts"]}
        assert shares["a"] == pytest.approx(0.9, abs=0.05)
        assert ended["rows_looked_at"] <= most


def test_of_a_target_that_was_edited_the_parts_are_counted_and_it_is_said(service: RunningService) -> None:
    given = same_and_others(service)
    batch = submit(service, choices=["a", "b"])
    give(service, given, engine_identity="e")
    (service.data_root / "t.parquet").write_bytes(b"other")
    answers = call(service, batch.id, "answers").json()
    assert (answers["distinct"], answers["counts"][0]) == (True, {"answer": "b", "rows": 10})


def test_to_count_answers_the_other_columns_of_a_target_are_not_read(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = same_and_others(service, 990, doc=[os.urandom(2_000).hex() for _ in range(1_000)])
    batch = submit(service, choices=["a", "b"])
    give(service, given, engine_identity="e")
    reads = CountedReads(monkeypatch)
    answers = call(service, batch.id, "answers").json()
    assert [(one["answer"], one["rows"]) for one in answers["counts"]] == [("a", 990), ("b", 10)]
    assert reads.bytes < (service.data_root / "t.parquet").stat().st_size / 4


def test_of_a_target_in_many_files_some_are_read(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    (service.data_root / "in").mkdir()
    for number in range(8):
        texts = ["late" if number > 3 else "early"] * 10
        pq.write_table(pa.table({"text": texts, "n": [1] * 10}), service.data_root / f"in/{number}.parquet")
    Answers(service, {}, engine_identity="e", name="known")
    batch = submit(service, source="in/", target="t/", choices=["a", "b"])
    given = {n: {"output": "b" if n >= 40 else "a", "confidence": 1.0} for n in range(80)}
    Answers(service, given, engine_identity="e").work()
    assert service.assemble()
    monkeypatch.setattr(answer_counts, "MOST_ROWS", 40)
    monkeypatch.setattr(answer_counts, "MOST_PARTS", 4)
    reads = CountedReads(monkeypatch)
    answers = call(service, batch.id, "answers").json()
    assert answers["counts"] == [{"answer": "a", "rows": 20}, {"answer": "b", "rows": 20}]
    assert sum(name.endswith(".parquet") for name in reads.opened) == 4
