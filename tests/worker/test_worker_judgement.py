"""Decisions without I/O: what an HTTP answer means for its row, and whose the GPU's time was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.worker.answer_check import MESSAGE_LENGTH, AnswerCheck
from airflow_batch_llm.worker.gpu_time import GpuTime
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError, judge
from airflow_batch_llm.worker_wire import ResultLine

ANY_TEXT = AnswerCheck()
CHOICES = AnswerCheck(choices=frozenset({"price", "quality"}))


def _completion(content: str | None = "text", reason: str | None = "stop", **usage: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    counts = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, **usage}
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": counts}).encode()


def _problem(message: str, param: str | None = None, code: int = 400) -> bytes:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "param": param, "code": code}}).encode()


def _answer(reason: str) -> ResultLine:
    return ResultLine(4, "success", output="text", finish_reason=reason, prompt_tokens=7, completion_tokens=3)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_a_finish_reason_that_says_so_makes_an_answer(reason: str) -> None:
    assert judge(4, 200, _completion(reason=reason), ANY_TEXT) == _answer(reason)


def test_cached_tokens_are_counted_where_the_engine_tells_them() -> None:
    content = _completion(prompt_tokens_details={"cached_tokens": 5})
    assert judge(4, 200, content, ANY_TEXT).cached_tokens == 5
    assert judge(4, 200, _completion(prompt_tokens_details=None), ANY_TEXT).cached_tokens is None


@pytest.mark.parametrize(
    ("status", "content"),
    [
        pytest.param(200, _completion(reason="abort"), id="aborted with half a text"),
        pytest.param(200, _completion(reason="repetition"), id="a reason nobody knows"),
        pytest.param(200, _completion(reason=None), id="no reason"),
        pytest.param(200, _completion(reason="content_filter"), id="filtered"),
        pytest.param(200, b'{"choices": [], "usage": {}}', id="no choice"),
        pytest.param(200, b'{"object": "error"}', id="another object"),
        pytest.param(200, b"<html>hello</html>", id="a proxy's page"),
        pytest.param(200, b"", id="nothing"),
        pytest.param(200, b"\xff\xfe", id="no UTF-8"),
        pytest.param(200, _completion(prompt_tokens=-1), id="less than no token"),
        pytest.param(200, _completion(completion_tokens=2**62), id="more tokens than any context holds"),
        pytest.param(200, _completion(prompt_tokens_details={"cached_tokens": -1}), id="less than no cached token"),
        pytest.param(404, _problem("The model `nope` does not exist.", "model", 404), id="another model"),
        pytest.param(404, b'{"detail":"Not Found"}', id="no such route"),
        pytest.param(401, b"", id="not allowed"),
        pytest.param(429, b"", id="too many"),
        pytest.param(500, _problem("EngineCore encountered an issue.", code=500), id="dying"),
        pytest.param(503, b"", id="queue full"),
    ],
)
def test_what_is_no_judgement_is_not_the_rows_fault(status: int, content: bytes) -> None:
    with pytest.raises(NotTheRowsFaultError):
        judge(4, status, content, ANY_TEXT)


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ("This model's maximum context length is 1024 tokens. However, 15041 characters", "input_text", None),
        ("This model's maximum context length is 1024 tokens. However, 1025 input tokens", "input_tokens", None),
        ("too long", "input_tokens", "context_length_exceeded"),
        ("This model's maximum context length is 4097 tokens.", "messages", "context_length_exceeded"),
        ("max_tokens must be at least 1, got 0.", "max_tokens", "engine_refused"),
        ("temperature must be non-negative, got -1.0.", "temperature", "engine_refused"),
        ("19 validation errors", None, "engine_refused"),
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_row_is_an_error_with_a_code_and_a_sentence(
    status: int, message: str, param: str | None, code: str | None
) -> None:
    result = judge(4, status, _problem(message, param), ANY_TEXT)
    assert result == ResultLine(4, "error", code=code or "context_length_exceeded", error=message)


def test_a_refusal_in_no_known_shape_keeps_its_text() -> None:
    assert judge(4, 413, b"Request Entity Too Large", ANY_TEXT).error == "Request Entity Too Large"


def test_an_engines_long_error_text_is_cut() -> None:
    result = judge(4, 400, _problem("x" * 10_000), ANY_TEXT)
    assert result.error == "x" * MESSAGE_LENGTH


@pytest.mark.parametrize("output", ["qu", "", "Price", "price "])
def test_an_answer_that_is_none_of_the_choices_is_kept_and_not_a_success(output: str | None) -> None:
    result = judge(4, 200, _completion(output, "length"), CHOICES)
    assert (result.status, result.code, result.output) == ("invalid_output", "not_a_choice", output)


@pytest.mark.parametrize("check", [ANY_TEXT, CHOICES])
def test_an_answer_without_a_text_is_no_success(check: AnswerCheck) -> None:
    result = judge(4, 200, _completion(None, "length"), check)
    assert (result.status, result.code, result.output) == ("invalid_output", "no_text", None)


def test_a_choice_is_a_success() -> None:
    assert judge(4, 200, _completion("price"), CHOICES).status == "success"


@given(st.integers(100, 599), st.binary(max_size=200))
def test_no_answer_at_all_breaks_the_judge(status: int, content: bytes) -> None:
    try:
        result = judge(0, status, content, ANY_TEXT)
    except NotTheRowsFaultError:
        return
    assert result.status == "error"
    assert result.error is not None


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Chunk:
    tokens: int = 0
    gpu_seconds: float = 0.0


def test_gpu_seconds_are_shared_by_tokens() -> None:
    clock, small, large = Clock(), Chunk(tokens=10), Chunk(tokens=30)
    time = GpuTime(clock)
    time.row_in()
    time.row_in()
    clock.now += 8
    time.share([small, large])
    assert (small.gpu_seconds, large.gpu_seconds) == (2.0, 6.0)
    assert (small.tokens, large.tokens) == (0, 0)


def test_time_without_a_row_at_the_engine_is_nobodys() -> None:
    clock, chunk = Clock(), Chunk(tokens=1)
    time = GpuTime(clock)
    clock.now += 50
    time.row_in()
    clock.now += 3
    time.row_out()
    clock.now += 50
    time.share([chunk])
    assert chunk.gpu_seconds == 3.0


def test_rows_at_once_are_counted_once() -> None:
    clock, chunk = Clock(), Chunk(tokens=1)
    time = GpuTime(clock)
    time.row_in()
    clock.now += 1
    time.row_in()
    clock.now += 1
    time.row_out()
    clock.now += 1
    time.row_out()
    time.share([chunk])
    assert chunk.gpu_seconds == 3.0


def test_time_in_which_no_token_came_back_waits_for_the_next_share() -> None:
    clock, chunk = Clock(), Chunk()
    time = GpuTime(clock)
    time.row_in()
    clock.now += 5
    time.share([chunk])
    assert chunk.gpu_seconds == 0.0
    clock.now += 2
    chunk.tokens = 3
    time.share([chunk])
    assert chunk.gpu_seconds == 7.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20))
def test_all_the_time_is_shared_out_and_no_more(rounds: list[tuple[int, int]]) -> None:
    clock, first, second = Clock(), Chunk(), Chunk()
    time = GpuTime(clock)
    time.row_in()
    for first_tokens, second_tokens in [*rounds, (1, 1)]:
        clock.now += 1
        first.tokens += first_tokens
        second.tokens += second_tokens
        time.share([first, second])
    assert first.gpu_seconds + second.gpu_seconds == pytest.approx(len(rounds) + 1)
