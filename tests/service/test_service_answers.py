"""How often which answer was given: of all rows where these are few, else of a sample from all over the batch."""

from __future__ import annotations

import pytest

from airflow_batch_llm.service import answer_counts
from tests.conftest import RunningService
from tests.service.counted_reads import CountedReads
from tests.service.looking import Answers, call, end, give, rows, submit, table


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
    assert answers == {"field": None, "counts": [], "rows_looked_at": 0, "rows_done": 6}


def test_duplicates_count_as_the_rows_that_they_are(service: RunningService) -> None:
    table(service, 4, text=["same"] * 3 + ["other"], n=[1] * 4)
    Answers(service, {}, engine_identity="e", name="known")
    batch = submit(service, choices=["a", "b"])
    give(service, [{"output": "a", "confidence": 1.0}] * 3 + [{"output": "b", "confidence": 1.0}], engine_identity="e")
    answers = call(service, batch.id, "answers").json()
    assert answers["counts"] == [{"answer": "a", "rows": 3}, {"answer": "b", "rows": 1}]
