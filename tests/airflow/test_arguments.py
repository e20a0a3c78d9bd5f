"""A wrong Dag fails when it is parsed, and templates are judged only when they are rendered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

pytestmark = pytest.mark.airflow


def operator(**changes: Any) -> BatchLLMOperator:
    arguments = {"source": "in.parquet", "target": "out.parquet", "model": "tiny", "prompt": "{text}?", **changes}
    return BatchLLMOperator(task_id="classify", **arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": None}, "either prompt or messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "either prompt or messages"),
        ({"prompt": None, "messages": []}, "messages is empty"),
        ({"prompt": None, "messages": [{"role": "robot", "content": "x"}]}, "cannot be used"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x"}], "system_prompt": "y"}, "goes with prompt"),
        ({"prompt": 7}, "cannot be used"),
        ({"source": "in.xlsx"}, "source is 'in.xlsx'"),
        ({"target": "out"}, "target is 'out'"),
        ({"choices": ["yes"]}, "at least two"),
        ({"choices": ["yes", "yes"]}, "more than once"),
        ({"choices": "yes"}, "list of texts"),
        ({"constants": {"a b": 1}}, "no name"),
        ({"constants": {"day": None}}, "only text, numbers and booleans"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": 1, "parameters": {"seed": 2}}, "seed is given twice"),
        ({"priority": 1001}, "priority is 1001"),
        ({"poll_interval": 0}, "poll_interval is 0"),
        ({"inline_wait": -1}, "inline_wait is -1"),
        ({"timeout": timedelta(0)}, "timeout is"),
        ({"timeout": 60}, "timeout is 60"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_fails_when_the_dag_is_parsed(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        operator(**changes)


def test_a_templated_place_is_not_judged_before_it_is_rendered() -> None:
    assert operator(source="{{ params.source }}").source == "{{ params.source }}"


def test_prompts_are_never_jinja_templates_and_constants_are() -> None:
    task = operator(
        source="{{ ds }}.parquet", prompt="{{ ds }} {text}", system_prompt="{{ ds }}", constants={"day": "{{ ds }}"}
    )
    task.render_template_fields({"ds": "2026-11-23"})
    assert {"prompt", "messages", "system_prompt"}.isdisjoint(task.template_fields)
    assert task.source == "2026-11-23.parquet"
    assert task.constants == {"day": "2026-11-23"}
    assert [message.content for message in task.messages] == ["{{ ds }}", "{{ ds }} {text}"]


def test_sampling_arguments_and_parameters_are_joined() -> None:
    task = operator(max_tokens=5, temperature=0.0, parameters={"stop": ["\n"]})
    assert task.parameters == {"max_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
