"""A query's result as files of one schema, from a real Postgres."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import TaskDeferred
from conftest import task_instance
from table_service import running_table_service

from airflow_batch_llm.operators import query_result
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.column_types import ColumnType
from airflow_batch_llm.operators.query_result import write_query_result
from airflow_batch_llm.operators.sql_source import SQLSource

pytestmark = pytest.mark.airflow

LOCAL = datetime.datetime.fromisoformat("2026-01-01T00:00:00")
NUMBERS = "select i as id, 'text ' || i as text from generate_series(0, 9) i order by i"


@pytest.fixture
def warehouse(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", postgres)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_result, "ROWS", 3)


def written(folder: Path, sql: str, parameters: Any = None, rows_per_file: int = 100) -> pa.Table:
    """The result, after a check that every file has its schema."""
    files = write_query_result(SQLSource("warehouse", sql, parameters, rows_per_file), folder)
    tables = [pq.read_table(file) for file in files]
    assert {table.schema for table in tables} == {tables[0].schema}
    assert sorted(folder.iterdir()) == files
    return pa.concat_tables(tables)


@pytest.mark.usefixtures("warehouse", "small_blocks")
@pytest.mark.parametrize(("rows_per_file", "rows"), [(100, [10]), (4, [4, 4, 2]), (5, [5, 5]), (1, [1] * 10)])
def test_a_result_is_cut_into_files_in_its_order(rows_per_file: int, rows: list[int], tmp_path: Path) -> None:
    files = write_query_result(SQLSource("warehouse", NUMBERS, rows_per_file=rows_per_file), tmp_path)
    assert [pq.read_metadata(file).num_rows for file in files] == rows
    assert [id_ for file in files for id_ in pq.read_table(file)["id"].to_pylist()] == list(range(10))


@pytest.mark.usefixtures("warehouse")
def test_every_type_keeps_its_values(tmp_path: Path) -> None:
    table = written(
        tmp_path,
        """select 9223372036854775807::bigint as whole, 0.1::float8 as float, 'NaN'::float8 as nan,
        123456789012345678901234567890.12::numeric as exact, true as yes, 'ünï' as text, date '2026-02-28' as day,
        timestamp '2026-02-28 12:00:00.123456' as local, timestamptz '2026-02-28 12:00:00.5+02' as instant,
        time '23:59:59' as at, '{"a": [1, null]}'::jsonb as json, array[1, 2] as list,
        '6f1b0c1e-0000-4000-8000-000000000000'::uuid as id, null::int as nothing""",
    )
    [row] = table.to_pylist()
    assert str(row.pop("nan")) == "nan"
    assert row == {
        "whole": 2**63 - 1,
        "float": 0.1,
        "exact": Decimal("123456789012345678901234567890.12"),
        "yes": True,
        "text": "ünï",
        "day": datetime.date(2026, 2, 28),
        "local": datetime.datetime.fromisoformat("2026-02-28T12:00:00.123456"),
        "instant": datetime.datetime(2026, 2, 28, 10, 0, 0, 500000, tzinfo=datetime.UTC),
        "at": datetime.time(23, 59, 59),
        "json": '{"a": [1, null]}',
        "list": "[1, 2]",
        "id": "6f1b0c1e-0000-4000-8000-000000000000",
        "nothing": None,
    }
    assert table.schema.field("nothing").type == pa.string()


@pytest.mark.usefixtures("warehouse", "small_blocks")
@pytest.mark.parametrize("rows_per_file", [2, 4, 100])
def test_a_column_that_gets_its_type_late_has_it_in_every_file(rows_per_file: int, tmp_path: Path) -> None:
    table = written(
        tmp_path,
        """select i as id, case when i >= 7 then i * 1.5::float8 end as late, case when i >= 5 then now() end as at,
        case when i = 9 then 1.2345 else 1.5 end as price from generate_series(0, 9) i order by i""",
        rows_per_file=rows_per_file,
    )
    assert table["late"].to_pylist() == [None] * 7 + [10.5, 12.0, 13.5]
    assert table["price"].to_pylist() == [Decimal("1.5")] * 9 + [Decimal("1.2345")]
    assert table.schema.field("price").type == pa.decimal128(38, 4)
    assert table["at"].null_count == 5


@pytest.mark.usefixtures("warehouse")
def test_a_result_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on 'warehouse' gives no rows: there is nothing to ask"):
        written(tmp_path, "select 1 as id, 'a' as text where false")


@pytest.mark.usefixtures("warehouse")
@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("select 7 as id where 'a%b' like 'a%' ", None),
        ("select %(x)s::int as id", {"x": 7}),
        ("select %s::int as id", [7]),
    ],
)
def test_parameters_are_the_drivers_and_a_percent_sign_is_one(sql: str, parameters: Any, tmp_path: Path) -> None:
    assert written(tmp_path, sql, parameters)["id"].to_pylist() == [7]


@pytest.mark.usefixtures("warehouse")
@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("select 'x'::bytea as blob", "Column 'blob' of the query holds bytes .row 0."),
        ("select interval '1 day' as pause", "Column 'pause' of the query holds values of type timedelta"),
        ("select 'NaN'::numeric as price", "Column 'price' of the query has the decimal NaN"),
        ("select 1 as a, 2 as a", "more than one column named 'a'"),
    ],
)
def test_what_no_table_can_hold_as_it_is_is_refused_by_column(sql: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        written(tmp_path, sql)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([[1, 2], [1.5]], pa.float64()),
        ([[1], [Decimal("1.25")]], pa.decimal128(38, 2)),
        ([[1], [2**63]], pa.decimal128(38, 0)),
        ([[Decimal("1E+3")], [Decimal("1E-40")]], pa.decimal256(76, 40)),
        ([[None], [True]], pa.bool_()),
        ([["a"], [{"b": 1}]], pa.string()),
    ],
    ids=repr,
)
def test_a_column_widens_without_bending_a_value(blocks: list[list[Any]], expected: pa.DataType) -> None:
    column = ColumnType("c")
    arrays = [column.array(block, first=0) for block in blocks]
    assert column.arrow == expected
    found = [value for array in arrays for value in array.cast(column.arrow).to_pylist()]
    given = [value for block in blocks for value in block]
    assert found == [json.dumps(value) if isinstance(value, dict) else value for value in given]


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ([[1, "a"]], "has values of the types"),
        ([["a"], [None, 1]], "has values of the types text and integer .row 1."),
        ([[True], [1]], "has values of the types boolean and integer"),
        ([[2**53 + 1], [0.5]], "no float is"),
        ([[0.5], [2**53 + 1]], "no float is"),
        ([[10**80]], "76 in all go"),
        ([[LOCAL, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)]], "with and without"),
        ([[datetime.date(2026, 1, 1)], [LOCAL]], "types date and timestamp"),
        ([[datetime.time(1, tzinfo=datetime.UTC)]], "times of day with a time zone"),
    ],
    ids=repr,
)
def test_a_column_that_no_type_holds_is_refused(blocks: list[list[Any]], sentence: str) -> None:
    column = ColumnType("c")
    with pytest.raises(ValueError, match=f"Column 'c' of the query.*{sentence}"):
        for block in blocks:
            column.array(block, first=0)


class _Hook:
    """A database hook without SQLAlchemy, over Python's own SQLite."""

    def get_sqlalchemy_engine(self, _: Any) -> None:
        raise NotImplementedError("no engine")

    def get_conn(self) -> Any:
        import sqlite3

        return sqlite3.connect(":memory:")


@pytest.mark.usefixtures("small_blocks")
def test_a_hook_without_an_engine_is_read_through_its_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_result.BaseHook, "get_hook", lambda _: _Hook())
    sql = "with recursive t(i) as (select ? union all select i + 1 from t where i < 9) select i as id from t"
    assert written(tmp_path, sql, [0])["id"].to_pylist() == list(range(10))
    with pytest.raises(ValueError, match="gives no rows"):
        written(tmp_path, "create table x (a)")


def test_a_connection_to_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_result.BaseHook, "get_hook", lambda _: object())
    with pytest.raises(ValueError, match="Connection 'warehouse' is none to a database"):
        written(tmp_path, "select 1")


@pytest.mark.usefixtures("warehouse")
def test_a_retry_neither_queries_nor_uploads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_table_service() as service:
        connection = {"conn_type": "batch_llm", "host": service.url, "password": "t"}
        monkeypatch.setenv("AIRFLOW_CONN_BATCH_LLM_DEFAULT", json.dumps(connection))

        def defers(sql: str) -> str:
            task = BatchLLMOperator(
                task_id="t",
                source=SQLSource("warehouse", sql, rows_per_file=6),
                target="out.parquet",
                model="m",
                prompt="{text}",
                inline_wait=0.0,
            )
            with pytest.raises(TaskDeferred) as deferral:
                task.execute({"ti": task_instance()})
            return str(deferral.value.trigger.batch_id)

        first = defers(NUMBERS)
        assert [fields["filename"] for fields, _ in service.files.values()] == [
            "part-00000.parquet",
            "part-00001.parquet",
        ]
        assert service.batches[0]["dataset"]["source"] == ["file-0", "file-1"]
        with monkeypatch.context() as patch:
            patch.delenv("AIRFLOW_CONN_WAREHOUSE")  # so that a query would fail
            assert defers(NUMBERS) == first
            service.end(first, "cancelled")
            assert defers(NUMBERS) != first
        assert service.batches[0]["dataset"]["source"] == ["file-0", "file-1"]
        assert len(service.files) == 2
        defers("select 'another query' as text")
        assert service.submits[-1]["dataset"]["source"] == ["file-2"]
