"""What an answer must be to count for a table's row: choices with their confidence, samples, vectors, schemas."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.worker.answer_check import MESSAGE_LENGTH, AnswerCheck, SchemaCheck
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.judgement import NotTheRowsFaultError, judge
from airflow_batch_llm.worker_wire import Claim, ResultLine, RowLine
from tests.worker.fake_engine import MARK, TOKEN_PROBABILITY, FakeEngine

LABELS = AnswerCheck(choices=frozenset({"the", "there", "price"}))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "stars": {"type": "integer"},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["stars"],
}


def _choice(text: str | None, *, reason: str = "stop", index: int = 0, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    return {"index": index, "message": message, "finish_reason": reason, **more}


def _chat(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


def _logprobs(*values: float | None) -> dict[str, Any]:
    return {"content": [{"token": "t", "logprob": value} for value in values]}


def _labelled(text: str = "price", **more: Any) -> ResultLine:
    return judge(0, 200, _chat(_choice(text, **more)), LABELS)


def test_the_confidence_of_a_choice_is_the_product_of_its_tokens_probabilities() -> None:
    logprobs = _logprobs(math.log(0.5), math.log(0.8), 0.0)
    assert _labelled(logprobs=logprobs).confidence == pytest.approx(0.4)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="no logprobs"),
        pytest.param({"logprobs": None}, id="null"),
        pytest.param({"logprobs": {"content": None}}, id="no tokens"),
        pytest.param({"logprobs": {"content": []}}, id="an empty list"),
        pytest.param({"logprobs": {"tokens": ["a"], "token_logprobs": [0.0]}}, id="another shape"),
        pytest.param({"logprobs": [0.1]}, id="a list"),
        pytest.param({"logprobs": _logprobs(-0.1, None)}, id="a token without"),
        pytest.param({"logprobs": _logprobs(-0.1, -9999.0)}, id="a token that vLLM does not know of"),
        pytest.param({"logprobs": _logprobs(-0.1, 17.5)}, id="logits"),
        pytest.param({"logprobs": _logprobs(-0.1), "message": {"reasoning": "Hm."}}, id="thoughts"),
        pytest.param({"logprobs": _logprobs(-0.1), "reason": "length"}, id="cut by its length"),
        pytest.param({"logprobs": _logprobs(-0.1), "stop_reason": "\n"}, id="cut by a stop string"),
    ],
)
def test_a_confidence_that_is_not_known_is_null_and_the_choice_still_counts(more: dict[str, Any]) -> None:
    result = _labelled(**more)
    assert (result.status, result.output, result.confidence) == ("success", "price", None)


@given(st.lists(st.floats(max_value=0, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_confidence_is_a_probability(values: list[float]) -> None:
    confidence = _labelled(logprobs=_logprobs(*values)).confidence
    assert confidence is None or 0 <= confidence <= 1


@pytest.mark.parametrize("cut", [{"reason": "length"}, {"stop_reason": "re"}])
def test_a_cut_choice_that_another_one_begins_with_does_not_count(cut: dict[str, Any]) -> None:
    result = _labelled("the", **cut)
    assert (result.status, result.code, result.output) == ("invalid_output", "truncated", "the")
    assert _labelled("there", **cut).status == "success"
    assert _labelled("the", stop_reason=128009).status == "success"


@given(st.frozensets(st.text("ab", max_size=4), min_size=1))
def test_beginnings_of_other_choices_are_found(choices: frozenset[str]) -> None:
    check = AnswerCheck(choices=choices)
    for text in choices:
        result = judge(0, 200, _chat(_choice(text, reason="length")), check)
        begins = any(other != text and other.startswith(text) for other in choices)
        assert result.status == ("invalid_output" if begins else "success")


def test_samples_come_in_their_order_and_say_where_one_was_cut() -> None:
    answer = _chat(_choice("c", index=2, reason="length"), _choice("a", index=0), _choice("b", index=1))
    result = judge(0, 200, answer, AnswerCheck(samples=3))
    assert (result.status, result.outputs, result.output) == ("success", ["a", "b", "c"], None)
    assert (result.finish_reason, result.completion_tokens) == ("length", 3)


@pytest.mark.parametrize(
    ("choices", "code", "outputs"),
    [
        ([_choice("a"), _choice(None, index=1), _choice("c", index=2)], "no_text", ["a", "c"]),
        ([_choice("a"), _choice("b", index=1)], "missing_samples", ["a", "b"]),
    ],
)
def test_samples_that_are_not_all_there_do_not_count(
    choices: list[dict[str, Any]], code: str, outputs: list[str]
) -> None:
    result = judge(0, 200, _chat(*choices), AnswerCheck(samples=3))
    assert (result.status, result.code, result.outputs) == ("invalid_output", code, outputs)


def test_a_sample_that_was_broken_off_is_not_the_rows_fault() -> None:
    with pytest.raises(NotTheRowsFaultError):
        judge(0, 200, _chat(_choice("a"), _choice("b", index=1, reason="abort")), AnswerCheck(samples=2))


def _vectors(*vectors: Any) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return json.dumps({"data": data, "usage": {"prompt_tokens": 4}}).encode()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_both_ways_to_write_a_vector_give_the_same_floats(values: list[float]) -> None:
    packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    for vector in (values, packed):
        result = judge(0, 200, _vectors(vector), AnswerCheck(EMBEDDINGS))
        assert (result.status, result.embedding, result.output) == ("success", packed, None)
        assert (result.prompt_tokens, result.completion_tokens) == (4, 0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_an_error(wrong: float) -> None:
    packed = base64.b64encode(struct.pack("<3f", 1.0, wrong, -math.inf)).decode()
    for vector in (packed, [1.0, None], [1e300]):
        result = judge(0, 200, _vectors(vector), AnswerCheck(EMBEDDINGS))
        assert (result.status, result.code, result.embedding) == ("error", "not_finite", None)


@pytest.mark.parametrize(
    "vectors",
    [(), ([1.0], [2.0]), ("AAAA!",), ("AAAA",), ({"a": 1},), (["x"],), ([],), ("",)],
)
def test_an_answer_that_is_not_one_vector_is_no_judgement(vectors: tuple[Any, ...]) -> None:
    with pytest.raises(NotTheRowsFaultError):
        judge(0, 200, _vectors(*vectors), AnswerCheck(EMBEDDINGS))


@pytest.mark.parametrize(
    ("text", "reason", "code", "sentence"),
    [
        ("It is 5.", "stop", "not_json", "The answer is not JSON: Expecting value at character 1."),
        ('{"stars":5', "stop", "not_json", "delimiter at character 11"),
        ('{"stars":5', "length", "truncated", "reached the most tokens"),
        ('```json\n{"stars":5}\n```', "stop", "not_json", "at character 1"),
        ('{"stars":5} {"stars":5}', "stop", "not_json", "Extra data at character 13"),
        ('{"stars":5,"score":NaN}', "stop", "not_json", "NaN is no number"),
        ("5", "stop", "schema_mismatch", "The answer: 5 is not of type"),
        ("{}", "stop", "schema_mismatch", 'The answer: "stars" is a required property.'),
        ('{"stars":"5"}', "stop", "schema_mismatch", "'stars' in the answer: \"5\" is not of type"),
        ('{"stars":null}', "stop", "schema_mismatch", "'stars' in the answer"),
        ('{"stars":5,"tags":["a","c"]}', "length", "schema_mismatch", "'tags[1]' in the answer"),
        ('{"stars":9223372036854775808}', "stop", "schema_mismatch", "'stars' in the answer is 9223372036854775808"),
        ('{"stars":1e30}', "stop", "schema_mismatch", "which 64 bits cannot hold"),
        ('{"stars":5,"score":9007199254740993}', "stop", "schema_mismatch", "'score' in the answer is 90071992547"),
        ('{"stars":5,"score":1e999}', "stop", "schema_mismatch", "1e999, which is beyond all 64-bit floats"),
        ('{"stars":' + "1" * 5_000 + "}", "stop", "schema_mismatch", "an integer of 5,000 digits"),
        ('{"stars":5,"stars":5}', "stop", "schema_mismatch", "the key 'stars' twice"),
        ('{"stars":5,"name":"\\ud800"}', "stop", "schema_mismatch", "half of a surrogate pair"),
        ('{"stars":5,"x":' + "[" * 100_000 + "}", "stop", "schema_mismatch", "nested too deep"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_instance_says_what_and_where(text: str, reason: str, code: str, sentence: str) -> None:
    result = judge(0, 200, _chat(_choice(text, reason=reason)), AnswerCheck(schema=SchemaCheck.of(SCHEMA)))
    assert (result.status, result.code, result.output) == ("invalid_output", code, text)
    assert sentence in (result.error or "")
    assert len(result.error or "") <= MESSAGE_LENGTH


@pytest.mark.parametrize(
    "text",
    [
        '{"stars":5}',
        ' {"stars": 5.0,\n"name": null_} '.replace("null_", '"\\ud83d\\ude00"'),
        '{"stars":-9223372036854775808,"score":1180591620717411303424}',
        '{"stars":5,"more":[1,{"a":null}]}',
    ],
)
def test_an_instance_is_a_success(text: str) -> None:
    result = judge(0, 200, _chat(_choice(text)), AnswerCheck(schema=SchemaCheck.of(SCHEMA)))
    assert (result.status, result.output, result.code) == ("success", text, None)


def test_what_a_part_of_a_long_answer_says_is_cut() -> None:
    text = json.dumps({"stars": "x" * 10_000})
    result = judge(0, 200, _chat(_choice(text)), AnswerCheck(schema=SchemaCheck.of(SCHEMA)))
    assert len(result.error or "") <= MESSAGE_LENGTH
    assert result.output == text


def _claim(**claim: Any) -> Claim:
    given: dict[str, Any] = {"endpoint": "/v1/chat/completions", "parameters": {}} | claim
    return Claim(
        chunk_id=1, attempt=1, batch_id="b", model="fake", rows=1, rows_url="r", sha256="", parts_url="p", done=[],
        lease_seconds=1.0, **given,
    )  # fmt: skip


async def _asked(claim: Claim, body: bytes = b'{"messages":[{"role":"user","content":"hello"}]}') -> ResultLine:
    async with FakeEngine() as fake, Engine(model="fake", base_url=fake.url) as engine:
        return await engine.ask(RowLine(0, body), claim, AnswerCheck.of(claim))


async def test_what_a_claim_asks_for_comes_back_from_an_engine() -> None:
    choices = [MARK + "hello", MARK + "goodbye"]
    chosen = await _asked(_claim(choices=choices, parameters={"logprobs": True}))
    assert (chosen.output, chosen.confidence) == (MARK + "hello", pytest.approx(TOKEN_PROBABILITY**3))
    sampled = await _asked(_claim(parameters={"n": 2}))
    assert sampled.outputs == [MARK + "hello #0", MARK + "hello #1"]
    typed = await _asked(_claim(output_schema=SCHEMA, parameters={"structured_outputs": {"json": SCHEMA}}))
    assert typed.status == "success"
    assert json.loads(typed.output or "")["name"] == MARK + "hello"
    body = b'{"input":"hello"}'
    listed, packed = [
        await _asked(_claim(endpoint=EMBEDDINGS, parameters=parameters), body)
        for parameters in ({}, {"encoding_format": "base64"})
    ]
    assert listed == packed
    assert struct.unpack("<2f", base64.b64decode(packed.embedding or "")) == (0.5, 5.0)


async def test_an_engine_that_ignores_a_schema_makes_no_success() -> None:
    ignored = await _asked(_claim(output_schema=SCHEMA))
    assert (ignored.status, ignored.code, ignored.output) == ("invalid_output", "not_json", MARK + "hello")


def test_a_worker_makes_nothing_of_a_schema_that_it_cannot_check() -> None:
    with pytest.raises(ValueError, match="names no type"):
        AnswerCheck.of(_claim(output_schema={}))


@given(st.lists(st.sampled_from([_choice("a"), _choice(None), _choice("b", reason="length")]), min_size=1))
def test_nothing_that_an_engine_answers_breaks_a_check(choices: list[dict[str, Any]]) -> None:
    checks = [AnswerCheck(), LABELS, AnswerCheck(samples=2), AnswerCheck(schema=SchemaCheck.of(SCHEMA))]
    for check, answer in itertools.product(checks, [_chat(*choices)]):
        assert judge(0, 200, answer, check).status in ("success", "invalid_output")
