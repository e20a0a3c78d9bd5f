"""An engine that gives the same answer to the same row, and remembers what it was asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from airflow_batch_llm.worker.answer_check import AnswerCheck
from airflow_batch_llm.worker.judgement import judge
from airflow_batch_llm.worker_wire import Claim, ResultLine, RowLine

REFUSED: Final = "refused"
"""Rows with this word are refused by the engine: they end as errors."""

ENDS_WORKERS: Final = "deadly to workers"
ENDS_ENGINES: Final = "deadly to engines"
DEADLY: Final = {ENDS_WORKERS: "worker_lost", ENDS_ENGINES: "engine_died"}
"""Rows with these words end whatever asks them, every time; and the code of the error that each ends with."""


def text_of(line: RowLine) -> str:
    """What a row asks."""
    text: str = msgspec.json.decode(line.body)["messages"][-1]["content"]
    return text


def end_of(text: str) -> str | None:
    """The code that a deadly row ends with; None for any other."""
    return next((code for words, code in DEADLY.items() if words in text), None)


def answer_to(text: str) -> str:
    return f"answer to {text}"


def tokens_of(text: str) -> tuple[int, int]:
    """Prompt and answer tokens of a row; none where the engine refuses it."""
    return (0, 0) if REFUSED in text else (len(text) + 3, sum(text.encode()) % 11 + 1)


@dataclass
class Engine:
    """Judged by the worker's own code."""

    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each (batch id, row) was asked."""
    shared_by: list[Any] = field(default_factory=list)
    """The workers, as far as they ask one server."""

    def ask(self, claim: Claim, line: RowLine, check: AnswerCheck) -> ResultLine:
        self.asked[claim.batch_id, line.row] += 1
        text = text_of(line)
        status, content = _reply(text)
        return judge(line.row, status, content, check)


def _reply(text: str) -> tuple[int, bytes]:
    if REFUSED in text:
        problem = {"message": f"{text!r} is refused", "type": "BadRequestError", "param": None, "code": 400}
        return 400, msgspec.json.encode({"error": problem})
    prompt, answer = tokens_of(text)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer_to(text)},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return 200, msgspec.json.encode({"id": "x", "choices": [choice], "usage": usage})
