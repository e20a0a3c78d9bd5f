"""A wrong Dag fails when it is parsed, and templates are judged only when they are rendered."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.serialization.serialized_objects import DagSerialization
from pydantic import BaseModel

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.sql_source import SQLSource

pytestmark = pytest.mark.airflow


class Answer(BaseModel):
    topic: str
    urgent: bool = False


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
        ({"source": ["a.parquet", "b.xlsx"]}, "source is 'b.xlsx'"),
        ({"source": []}, "source is an empty list"),
        ({"source": [{"a": 1}, "b.csv"]}, "rows .mappings. and other things"),
        ({"source": {"a": 1}}, "source is a dict"),
        ({"source": [{"a": object()}]}, "Row 0 of the source has a object in column 'a'"),
        ({"target": ["a.csv"]}, "target is a list"),
        ({"target": "out.csv.bz2"}, "target is 'out.csv.bz2'"),
        ({"target": "out*.csv", "format": "orc"}, "format is 'orc'"),
        ({"compression": "lz4"}, "compression is 'lz4'"),
        ({"target": "o.csv.gz", "format": "jsonl"}, "the ending says csv"),
        ({"target": "o.csv.gz", "compression": "zstd"}, "the ending says another"),
        ({"target": "o.csv", "compression": "gzip"}, "the ending says another"),
        ({"output_type": int}, "must be a Pydantic model"),
        ({"output_type": {"type": "string"}}, "something else than an object"),
        ({"output_type": {"type": "object", "properties": {"a": {1, 2}}}}, "is no JSON"),
        ({"output_type": Answer, "choices": ["a", "b"]}, "either choices or output_type"),
        ({"n": 0}, "n is 0"),
        ({"n": 2, "temperature": 1.0, "choices": ["a", "b"]}, "several answers a row go with plain text"),
        ({"n": 2}, "Give a temperature above 0"),
        ({"reuse": "always"}, "reuse is 'always'"),
        ({"on_clear": "again"}, "on_clear is 'again'"),
        ({"max_error_rate": 1.1}, "max_error_rate is 1.1"),
        ({"max_error_rate": True}, "max_error_rate is True"),
        ({"max_errors": -1}, "max_errors is -1"),
        ({"max_errors": 0.5}, "max_errors is 0.5"),
        ({"max_errors": 1, "wait_for_completion": False}, "need wait_for_completion"),
        ({"max_invalid_rate": -0.1, "choices": ["a", "b"]}, "max_invalid_rate is -0.1"),
        ({"max_invalid_rate": 0.1}, "max_invalid_rate goes with choices or output_type"),
        ({"max_invalid_rate": 0, "choices": ["a", "b"], "wait_for_completion": False}, "need wait_for_completion"),
        ({"dry_run": True, "max_invalid_rate": 0, "choices": ["a", "b"]}, "max_invalid_rate has no meaning"),
        ({"quarantine": "out.parquet"}, "quarantine is 'out.parquet', which is the target"),
        ({"quarantine": "bad.csv"}, "quarantine is 'bad.csv' and the target is parquet"),
        ({"quarantine": "bad.parquet", "target": "o/", "format": "csv"}, "and the target is csv"),
        ({"quarantine": "bad/"}, "quarantine is 'bad/'; it is one file"),
        ({"quarantine": ["bad.csv"]}, "quarantine is a list"),
        (
            {
                "source": None,
                "input_file_id": "file-1",
                "target": None,
                "prompt": None,
                "model": None,
                "quarantine": "bad.csv",
            },
            "quarantine goes with source",
        ),
        ({"dry_run": True, "max_errors": 1}, "max_errors has no meaning for a dry_run"),
        ({"dry_run": True, "overwrite": True}, "overwrite has no meaning for a dry_run"),
        ({"dry_run": True, "wait_for_completion": False}, "dry_run waits for its estimate"),
        ({"endpoint": "/v1/embeddings", "system_prompt": "x"}, "system_prompt goes with /v1/chat/completions"),
        ({"endpoint": "/v1/embeddings", "choices": ["a", "b"]}, "choices goes with /v1/chat/completions"),
        ({"endpoint": "/v1/embeddings", "max_tokens": 3}, "max_tokens goes with /v1/chat/completions"),
        ({"endpoint": "/v1/embeddings", "prompt": None}, "the template of the text to embed"),
        ({"choices": ["yes"]}, "at least two"),
        ({"choices": ["yes", "yes"]}, "more than once"),
        ({"choices": "yes"}, "list of texts"),
        ({"constants": {"a b": 1}}, "no name"),
        ({"constants": {"day": None}}, "only text, numbers and booleans"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": 1, "parameters": {"seed": 2}}, "seed is given twice"),
        ({"priority": 1001}, "priority is 1001"),
        ({"priority": "soon"}, "priority is 'soon'; it is a whole number from -1000 to 1000, or one of 'low'"),
        ({"priority": True}, "priority is True"),
        ({"deadline": timedelta(0)}, "a timedelta is counted from the submit"),
        ({"deadline": 3600}, "deadline is 3600"),
        ({"outlets": [Asset("labels")], "wait_for_completion": False}, "outlets need wait_for_completion"),
        ({"deadline": "next week"}, "deadline is 'next week'"),
        ({"deadline": date(2026, 1, 31)}, "deadline is datetime.date"),
        ({"passthrough": "text"}, "passthrough is 'text'; it is a list"),
        ({"parameters": ["stop"]}, "parameters is .*; it is a dictionary"),
        ({"poll_interval": timedelta(seconds=5)}, "poll_interval is .*, and must be a number of seconds"),
        ({"inline_wait": None}, "inline_wait is None, and must be a number of seconds"),
        ({"pause_unwatched_after": timedelta(minutes=1)}, "a timedelta of at least 2 minutes and at most 30 days"),
        ({"pause_unwatched_after": 600}, "pause_unwatched_after is 600, and must be a timedelta"),
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
    task = operator(target="{{ ds }}/", quarantine="bad/{{ ds }}.csv")
    task.render_template_fields({"ds": "2026-11-23"})
    assert task.quarantine == "bad/2026-11-23.csv"


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


@pytest.mark.parametrize(
    "place",
    [
        *(f"in{ending}" for ending in (".parquet", ".jsonl", ".csv", ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".CSV.ZST")),
        *("folder/", "s3://lake/reviews/ds={{ ds }}/", "s3://lake/reviews/", "a/*.parquet", "a/**", "a/part-?"),
        ["a.csv", "b/", "c/*.csv"],
    ],
    ids=str,
)
def test_files_folders_patterns_and_lists_of_them_are_sources(place: Any) -> None:
    assert operator(source=place).source == place


@pytest.mark.parametrize(
    "arguments",
    [{"target": "out/"}, {"target": "out/", "format": "csv", "compression": "gzip"}, {"target": "o.jsonl.zst"}],
    ids=str,
)
def test_files_and_folders_are_targets(arguments: dict[str, Any]) -> None:
    assert operator(**arguments).target == arguments["target"]


def test_a_pydantic_model_becomes_its_schema() -> None:
    assert operator(output_type=Answer).output_schema == Answer.model_json_schema()


def test_a_query_is_a_template_and_its_rows_are_not() -> None:
    task = operator(source=SQLSource("db", "select * from r where day = '{{ ds }}' and x = %(x)s", {"x": "{{ ds }}"}))
    task.render_template_fields({"ds": "2026-11-23"})
    assert task.source.sql == "select * from r where day = '2026-11-23' and x = %(x)s"
    assert task.source.parameters == {"x": "2026-11-23"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"conn_id": ""}, "conn_id"), ({"sql": " "}, "sql"), ({"rows_per_file": 0}, "rows_per_file is 0")],
)
def test_a_wrong_query_fails_when_the_dag_is_parsed(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SQLSource(**{"conn_id": "db", "sql": "select 1", **arguments})


@pytest.mark.parametrize("source", ["in.parquet", [{"text": "{{ x }}"}], SQLSource("db", "select 1 as text")], ids=repr)
def test_a_dag_with_every_kind_of_source_and_a_typed_answer_can_be_stored(source: Any) -> None:
    def stored() -> Any:
        with DAG("d") as dag:
            arguments = {"model": "tiny", "prompt": "{text}?", "output_type": Answer}
            BatchLLMOperator(task_id="one", source=source, target="a.parquet", **arguments)
            mapped = BatchLLMOperator.partial(task_id="many", source=source, **arguments)
            mapped.expand(target=["a.parquet", "b.parquet"])
        return DagSerialization.to_dict(dag)

    first = stored()
    assert first == stored()
    assert set(DagSerialization.from_dict(first).task_ids) == {"one", "many"}


def test_airflows_own_dry_run_is_still_a_method() -> None:
    assert callable(operator(dry_run=True).dry_run)
