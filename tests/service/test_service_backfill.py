"""A backfill through the service: neighbouring windows, and what goes before it."""

from __future__ import annotations

from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.keeping import answered, submit


def test_neighbouring_windows_ask_for_the_rows_that_they_share_once(service: RunningService) -> None:
    """Each window is computed when the one before it has finished, and 3 of its 10 rows are that one's too."""
    rows = [f"row {number}" for number in range(31)]
    worker = AnsweringWorker(service, engine_identity="e")
    for day in range(4):
        window = rows[7 * day : 7 * day + 10]
        batch = submit(service, window, f"day-{day}", priority=-100, fair_group="reviews", key=f"day {day}")
        worker.work()
        assert service.assemble()
        batch = service.client.get(batch.id)
        assert (batch.status, batch.progress.rows_reused) == ("completed", 3 if day else 0)
        answers = [row["llm_output"] for row in service.client.results(batch.id)]
        assert len(answers) == 10
        assert None not in answers
    assert len(worker.asked) == len(rows)


def test_todays_run_is_done_before_what_is_left_of_a_backfill(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="e")
    past = [submit(service, [f"day {day}"], f"day-{day}", priority=-100, fair_group="reviews") for day in range(3)]
    first = worker.claim()
    today = submit(service, ["today"], "today", fair_group="reviews")
    second = worker.claim()
    assert first is not None
    assert second is not None
    assert (first[0].batch_id, second[0].batch_id) == (past[0].id, today.id)


def test_a_batch_says_with_whom_it_shares_its_turn(service: RunningService) -> None:
    assert submit(service, fair_group="reviews").fair_group == "reviews"
    assert submit(service, name="t", series="a series").fair_group == "a series"
    alone = answered(service, submit(service, name="u"))
    assert alone.fair_group == alone.id
