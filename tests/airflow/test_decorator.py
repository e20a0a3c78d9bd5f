"""``@task.batch_llm``: what the function returns is the source, and it is asked once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization
from conftest import task_instance
from table_service import TableService, running_table_service

from airflow_batch_llm.operators.sql_source import SQLSource

pytestmark = pytest.mark.airflow

ARGUMENTS: dict[str, Any] = {"model": "tiny", "prompt": "{{ ds }} {text}", "target": "{{ ds }}.parquet"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[TableService]:
    with running_table_service() as started:
        connection = {"conn_type": "batch_llm", "host": started.url, "password": "t"}
        monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))
        yield started


def made(function: Any, *arguments: Any, **changes: Any) -> Any:
    """The operator that the decorator makes of the function."""
    with DAG("d"):
        return task.batch_llm(inline_wait=0.0, retries=2, **{**ARGUMENTS, **changes})(function)(*arguments).operator


def deferred(operator: Any, **context: Any) -> None:
    with pytest.raises(TaskDeferred):
        operator.execute({"ti": task_instance(), **context})


def test_rows_that_the_function_returns_are_uploaded_and_nothing_of_them_is_rendered(service: TableService) -> None:
    def rows(words: list[str], ds: str) -> list[dict[str, Any]]:
        return [{"text": f"{{{{ {word} }}}}", "day": ds} for word in words]

    operator = made(rows, ["a", "{{ ds }}"])
    operator.render_template_fields({"ds": "2026-11-23"})
    deferred(operator, ds="2026-11-23")
    assert service.uploaded_rows() == [
        {"text": "{{ a }}", "day": "2026-11-23"},
        {"text": "{{ 2026-11-23 }}", "day": "2026-11-23"},
    ]
    spec = service.batches[0]["dataset"]
    assert spec["messages"][0]["content"] == "{{ ds }} {text}"
    assert spec["target"] == "2026-11-23.parquet"


@pytest.mark.parametrize("returned", ["in.parquet", ["a/", "b.csv"]], ids=str)
def test_places_that_the_function_returns_are_the_source(returned: Any, service: TableService) -> None:
    deferred(made(lambda: returned, task_id="t"))
    assert service.batches[0]["dataset"]["source"] == returned
    assert service.files == {}


def test_a_query_that_the_function_returns_is_run(
    service: TableService, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", postgres)
    deferred(made(lambda: SQLSource("warehouse", "select * from reviews order by id"), task_id="t"))
    assert service.batches[0]["dataset"]["source"] == ["file-0"]


def test_a_retry_does_not_call_the_function_again(service: TableService) -> None:
    calls = []

    def rows() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"text": str(len(calls))}]

    deferred(made(rows))
    deferred(made(rows))
    service.end(service.batches[0]["id"], "cancelled")
    deferred(made(rows))
    assert len(calls) == 1
    assert [batch["dataset"]["source"] for batch in service.batches] == [["file-0"], ["file-0"]]


def test_a_retry_with_other_arguments_calls_the_function_again(service: TableService) -> None:
    def rows(word: str) -> list[dict[str, Any]]:
        return [{"text": word}]

    for word in ("a", "a", "b"):
        deferred(made(rows, word))
    assert [content for _, content in service.files.values()] == [b'{"text": "a"}\n', b'{"text": "b"}\n']
    assert service.submits[-1]["dataset"]["source"] == ["file-1"]


def test_a_retry_with_another_date_calls_the_function_again(service: TableService) -> None:
    def rows(day: Any) -> list[dict[str, Any]]:
        return [{"text": str(day)}]

    for day in (date(2026, 1, 1), date(2026, 1, 1), date(2026, 1, 2)):
        deferred(made(rows, day))
    assert [content for _, content in service.files.values()] == [
        b'{"text": "2026-01-01"}\n',
        b'{"text": "2026-01-02"}\n',
    ]


@pytest.mark.parametrize("returned", [[], None, 7, [{"a": b"x"}]], ids=repr)
def test_what_cannot_be_a_source_fails_the_task_before_anything_is_submitted(
    returned: Any, service: TableService
) -> None:
    with pytest.raises(AirflowFailException, match="Nothing was submitted"):
        made(lambda: returned, task_id="t").execute({"ti": task_instance()})
    assert service.batches == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source": "a.csv"}, "the function returns the source"),
        ({"input_file_id": "file-1"}, "the function returns the source"),
        ({"prompt": None}, "either prompt or messages"),
        ({"target": None}, "target is missing"),
        ({"max_errors": -1}, "max_errors is -1"),
    ],
)
def test_a_wrong_argument_fails_when_the_dag_is_parsed(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        made(lambda: None, task_id="t", **arguments)


def test_a_decorated_task_is_named_for_its_function_can_be_mapped_and_stored() -> None:
    def stored() -> dict[str, Any]:
        with DAG("d") as dag:

            @task.batch_llm(**ARGUMENTS)
            def label(word: str) -> list[dict[str, Any]]:
                return [{"text": word}]

            label("a")
            label.override(task_id="many").expand(word=["a", "b"])
        assert dag.task_dict["label"].custom_operator_name == "@task.batch_llm"
        assert {"source", "prompt", "messages", "input_file_id"}.isdisjoint(dag.task_dict["label"].template_fields)
        return DagSerialization.to_dict(dag)

    assert stored() == stored()
    assert set(DagSerialization.from_dict(stored()).task_ids) == {"label", "many"}
