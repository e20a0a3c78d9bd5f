"""How full the worker keeps its engine, how soon results are stored, and what a result must be."""

from __future__ import annotations

from itertools import pairwise

import pytest

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.worker import work
from tests.worker.conftest import CHUNK_ROWS, Bench, soon
from tests.worker.fake_engine import FakeEngine


def _lives(engine: FakeEngine) -> list[tuple[int, int]]:
    """When each chunk's first row came in and its last answer went out, in the order of the first rows."""
    came: dict[tuple[str, int], int] = {}
    went: dict[tuple[str, int], int] = {}
    for time, moment in enumerate(engine.moments):
        chunk = moment.batch_id, moment.row // CHUNK_ROWS
        if moment.what == "in":
            came.setdefault(chunk, time)
        else:
            went[chunk] = time
    return [(came[chunk], went[chunk]) for chunk in came]


async def test_every_row_of_several_batches_gets_its_own_answer(bench: Bench) -> None:
    batches = [bench.submit(50, name=name) for name in ("first", "second")]
    async with bench.worker():
        for batch_id in batches:
            await bench.answered(batch_id)
    for _ in batches:
        bench.service.assemble()
    for batch_id in batches:
        batch = bench.get(batch_id)
        assert (batch.status, batch.request_counts.completed) == (BatchStatus.COMPLETED, 50)
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (500, 250)
    assert bench.engine.rows_asked_twice == {}


async def test_the_engine_never_drains_between_chunks_or_batches(bench: Bench) -> None:
    bench.engine.delay = 0.4  # longer than a claim takes on a busy machine
    batches = [bench.submit(3 * CHUNK_ROWS, name=name) for name in ("first", "second")]
    async with bench.worker():
        for batch_id in batches:
            await bench.answered(batch_id)
    lives = _lives(bench.engine)
    assert len(lives) == 6
    for (_, last_answer), (next_first_row, _) in pairwise(lives):
        assert next_first_row < last_answer


async def test_the_next_chunk_is_with_the_engine_before_the_one_before_got_an_answer(bench: Bench) -> None:
    bench.engine.held = None
    batch_id = bench.submit(3 * CHUNK_ROWS)
    async with bench.worker(max_num_seqs=CHUNK_ROWS):
        await soon(lambda: bench.engine.in_flight == 2 * CHUNK_ROWS)
        assert {row // CHUNK_ROWS for _, row in bench.engine.asked} == {0, 1}
        bench.engine.let_go()
        await bench.completed(batch_id)


async def test_never_more_rows_are_in_flight_than_twice_what_the_engine_works_on(bench: Bench) -> None:
    bench.engine.delay = 0.01
    batch_id = bench.submit(100)
    async with bench.worker(max_num_seqs=7):
        await bench.completed(batch_id)
    assert bench.engine.most_in_flight == 14


async def test_finished_rows_are_committed_while_their_chunk_goes_on(bench: Bench) -> None:
    bench.engine.held = {CHUNK_ROWS - 1}
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker():
        await soon(lambda: bench.get(batch_id).progress.rows_done == CHUNK_ROWS - 1)
        assert bench.get(batch_id).progress.chunks_done == 0
        bench.engine.let_go()
        await bench.completed(batch_id)
    assert len(bench.parts(batch_id)) >= 2
    assert [attempt["outcome"] for attempt in bench.attempts(batch_id)] == ["committed"]


async def test_a_higher_priority_goes_first(bench: Bench) -> None:
    batches = {bench.submit(CHUNK_ROWS, name=f"p{priority}", priority=priority): priority for priority in (0, 5, -5)}
    async with bench.worker(max_num_seqs=1):
        for batch_id in batches:
            await bench.answered(batch_id)
    first_seen = dict.fromkeys(moment.batch_id for moment in bench.engine.moments)
    assert [batches[batch_id] for batch_id in first_seen] == [5, 0, -5]


async def test_requests_carry_the_parameters_of_their_batch_and_are_greedy_unless_asked_otherwise(bench: Bench) -> None:
    batch_id = bench.submit(1, parameters={"max_tokens": 7})
    async with bench.worker():
        await bench.completed(batch_id)
    assert bench.engine.bodies == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "table row 00000"}],
            "max_tokens": 7,
            "temperature": 0.0,
        }
    ]


async def test_a_row_too_long_becomes_an_error_row_and_harms_no_other(bench: Bench) -> None:
    bench.engine.refused_word = "long"
    batch_id = bench.submit(["a", "a long one", "b"])
    async with bench.worker():
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["success", "error", "success"]
    assert rows[1]["llm_output"] is None
    assert rows[1]["llm_error"].startswith("context_length_exceeded: This model's maximum context length is 1024")
    assert bench.engine.rows_asked_twice == {}
    counts = bench.get(batch_id).request_counts
    assert (counts.completed, counts.failed) == (2, 1)


async def test_a_row_that_a_living_engine_fails_on_three_times_is_an_error_and_no_other_row_is_blamed(
    bench: Bench,
) -> None:
    bench.engine.always[3] = "500"
    batch_id = bench.submit(30)
    async with bench.worker():
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["error" if number == 3 else "success" for number in range(30)]
    assert rows[3]["llm_error"].startswith("engine_error: HTTP 500")
    assert bench.engine.rows_asked_twice == {(batch_id, 3): 3}


@pytest.mark.parametrize("trouble", ["500", "drop", "abort", "unknown reason", "no reason"])
async def test_a_row_that_got_no_answer_is_asked_again_and_then_answered(bench: Bench, trouble: str) -> None:
    bench.engine.troubles[2].extend([trouble, trouble])  # type: ignore[list-item]
    batch_id = bench.submit(5)
    async with bench.worker():
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["success"] * 5
    assert bench.engine.rows_asked_twice == {(batch_id, 2): 3}


@pytest.mark.parametrize("trouble", ["abort", "unknown reason", "no reason"])
async def test_half_a_text_never_counts_as_an_answer(bench: Bench, trouble: str) -> None:
    bench.engine.always[0] = trouble  # type: ignore[assignment]
    batch_id = bench.submit(2)
    async with bench.worker():
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["error", "success"]
    assert rows[0]["llm_output"] is None
    assert "finish reason" in rows[0]["llm_error"]


async def test_an_answer_that_is_none_of_the_choices_is_invalid_output(bench: Bench) -> None:
    batch_id = bench.submit(["yes", "no", "maybe"], choices=["FAKE: yes", "FAKE: no"])
    async with bench.worker():
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["success", "success", "invalid_output"]
    assert rows[2]["llm_error"].startswith("not_a_choice: ")
    assert rows[2]["llm_output"] == "FAKE: maybe"
    assert bench.get(batch_id).request_counts.failed == 1
    assert bench.engine.bodies[0]["structured_outputs"] == {"choice": ["FAKE: yes", "FAKE: no"]}


async def test_gpu_seconds_are_no_more_than_the_time_that_passed_with_rows_at_the_engine(bench: Bench) -> None:
    bench.engine.delay = 0.2
    batches = [bench.submit(CHUNK_ROWS, name=name) for name in ("first", "second")]
    async with bench.worker(max_num_seqs=CHUNK_ROWS):
        for batch_id in batches:
            await bench.answered(batch_id)
    spent = [sum(part["gpu_seconds"] for part in bench.parts(batch_id)) for batch_id in batches]
    assert all(seconds > 0 for seconds in spent)
    assert 0.2 <= sum(spent) < 5.0


async def test_long_results_go_into_several_parts_and_each_row_into_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART_BYTES", 600)
    bench.engine.held = {0}  # so that the others are flushed together with it
    batch_id = bench.submit(CHUNK_ROWS)
    async with bench.worker(max_num_seqs=CHUNK_ROWS, flush_seconds=3_600.0):
        await soon(lambda: bench.engine.answered == CHUNK_ROWS - 1)
        bench.engine.let_go()
        rows = await bench.completed(batch_id)
    assert [row["llm_status"] for row in rows] == ["success"] * CHUNK_ROWS
    parts = bench.parts(batch_id)
    assert len(parts) > 2
    assert sum(part["rows"] for part in parts) == CHUNK_ROWS
    assert sum(part["gpu_seconds"] > 0 for part in parts) == 1
