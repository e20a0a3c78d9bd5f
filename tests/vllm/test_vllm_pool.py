"""Tables through a pool on real vLLM, as a client sees it."""

from __future__ import annotations

import httpx
import pytest

from airflow_batch_llm.models import BatchStatus
from tests.vllm.conftest import Tables, sample_texts

pytestmark = pytest.mark.vllm

CHOICES = ["library", "application", "game", "documentation", "data", "other"]


def _asked_directly(tables: Tables, texts: list[str], max_tokens: int) -> list[tuple[str, str, int, int]]:
    """What the pool's engine answers to each prompt alone, one after another, past worker and service."""
    socket = tables.pool.home / "workers" / "local" / "engine.sock"
    answers = []
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=60) as engine:
        for text in texts:
            body = {"model": tables.pool.model, "messages": [{"role": "user", "content": text}]}
            body |= {"temperature": 0, "max_tokens": max_tokens}
            answer = engine.post("http://engine/v1/chat/completions", json=body).raise_for_status().json()
            choice, usage = answer["choices"][0], answer["usage"]
            answers.append(
                (
                    choice["message"]["content"],
                    choice["finish_reason"],
                    usage["prompt_tokens"],
                    usage["completion_tokens"],
                )
            )
    return answers


def test_answers_belong_to_their_rows(tables: Tables) -> None:
    texts = sample_texts(120)
    rows = tables.target(tables.submit("own-answers", texts, parameters={"max_tokens": 16}))
    names = ("llm_output", "llm_finish_reason", "llm_prompt_tokens", "llm_completion_tokens")
    assert [tuple(row[name] for name in names) for row in rows] == _asked_directly(tables, texts, 16)
    assert {row["llm_status"] for row in rows} == {"success"}
    assert {row["llm_error"] for row in rows} == {None}
    assert len({row["llm_output"] for row in rows}) > 40, "the model answers too much alike for this test to tell"


def test_only_choices_come_out(tables: Tables) -> None:
    rows = tables.target(tables.submit("choices", sample_texts(200), choices=CHOICES))
    assert {row["llm_output"] for row in rows} <= set(CHOICES)
    assert {(row["llm_status"], row["llm_finish_reason"]) for row in rows} == {("success", "stop")}


def test_a_choice_that_was_cut_short_is_invalid_output(tables: Tables) -> None:
    rows = tables.target(
        tables.submit("cut", sample_texts(5), choices=["documentation", "dictionaries"], parameters={"max_tokens": 1})
    )
    assert {row["llm_status"] for row in rows} == {"invalid_output"}
    assert all(row["llm_error"].startswith("not_a_choice: ") for row in rows)


def test_a_row_longer_than_the_context_is_an_error_and_never_cut(tables: Tables) -> None:
    texts = sample_texts(20)
    texts[7] = "far too long " * 2_000
    texts[11] = "too long by tokens " * 300
    rows = tables.target(tables.submit("long", texts, parameters={"max_tokens": 4}))
    failed = {number: row for number, row in enumerate(rows) if row["llm_status"] != "success"}
    assert set(failed) == {7, 11}
    for row in failed.values():
        assert row["llm_output"] is None
        assert row["llm_error"].startswith("context_length_exceeded: This model's maximum context length is 1024")


def test_a_cancel_in_the_middle_keeps_what_was_done_and_progress_tells_the_speed(tables: Tables) -> None:
    batch_id = tables.submit("cancelled", sample_texts(6_000), parameters={"max_tokens": 8})
    progress = tables.until(batch_id, rows_done=300).progress
    assert progress.rows_total == 6_000
    assert progress.tokens_per_second is not None
    assert progress.tokens_per_second > 0
    assert progress.eta_seconds is not None
    assert progress.gpu_seconds > 0
    tables.client.cancel(batch_id)
    rows = tables.target(batch_id, BatchStatus.CANCELLED)
    statuses = [row["llm_status"] for row in rows]
    assert set(statuses) == {"success", "cancelled"}
    assert statuses.count("success") >= 300
    assert all((row["llm_output"] is None) == (row["llm_status"] == "cancelled") for row in rows)


def test_a_higher_priority_overtakes_a_batch_that_is_under_way(tables: Tables) -> None:
    low = tables.submit("low", sample_texts(8_000), priority=-10, parameters={"max_tokens": 2})
    tables.until(low, rows_done=1)
    high = tables.submit("high", sample_texts(100), priority=10, parameters={"max_tokens": 2})
    assert {row["llm_status"] for row in tables.target(high)} == {"success"}
    assert tables.client.get(low).status == BatchStatus.IN_PROGRESS
    tables.client.cancel(low)
    tables.target(low, BatchStatus.CANCELLED)
