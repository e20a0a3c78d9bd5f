"""Values that a format, Python or a prompt cannot hold are said before any row is asked, or are that row's error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError, NotFoundError
from airflow_batch_llm.models import OUTPUT_COLUMNS
from airflow_batch_llm.service import sources
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_bad_input import submit


@pytest.fixture(autouse=True)
def twenty_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS", 20)


@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl", "t.csv"])
@pytest.mark.parametrize("source", ["s.parquet", "s.jsonl", "s.csv"])
def test_a_target_may_hold_the_answers_only(service: RunningService, source: str, target: str) -> None:
    (service.data_root / "s.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (service.data_root / "s.csv").write_text("a\n1\n2\n")
    pq.write_table(pa.table({"a": [1, 2]}), service.data_root / "s.parquet")
    rows = answer_all(service, submit(service, source, target, passthrough=[]))
    assert [list(row) for row in rows] == [list(OUTPUT_COLUMNS)] * 2
    assert [row["llm_output"] for row in rows] == ["answer 0", "answer 1"]


def test_columns_keep_their_names_whatever_they_are_called(service: RunningService) -> None:
    names = ["row", "line", "column_0", "a.b", "", "a", "é"]
    pq.write_table(pa.table([[value] for value in range(7)], names=names), service.data_root / "s.parquet")
    for target in ("t.parquet", "t.jsonl", "t.csv"):
        (row,) = answer_all(service, submit(service, "s.parquet", target))
        assert [(name, str(row[name])) for name in row if name not in OUTPUT_COLUMNS] == [
            (name, str(value)) for value, name in enumerate(names)
        ]


def _failed(service: RunningService, lines: list[str], **spec: Any) -> tuple[str, str, str]:
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    batch = submit(service, "s.jsonl", **spec)
    assert service.plan()
    ended = service.client.get(batch.id)
    assert ended.errors is not None, ended.progress.waiting_for
    return ended.status, ended.errors.data[0].code, ended.errors.data[0].message


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        (['{"a": 1}', '{"a": "x"}'], "mixed_types", "rows from 0 to 1 "),
        (['{"a": 1}'] * 20 + ['{"a": "x"}'], "mixed_types", "rows from 20 to 20 "),
        (['{"a": 9007199254740993}'] * 20 + ['{"a": 1.5}'], "mixed_types", "rows from 0 to 19 "),
        (['{"a": 12345678901234567890123}'], "mixed_types", "too large"),
        (['{"a": {}}', "{}"], "column_not_supported", "'a' holds only empty objects"),
        (['{"a": [{"b": {}}]}'], "column_not_supported", "'a' holds only empty objects"),
    ],
)
def test_what_no_column_of_parquet_can_hold_fails_before_a_row_is_asked(
    service: RunningService, lines: list[str], code: str, says: str
) -> None:
    status, found, message = _failed(service, lines)
    assert (status, found) == ("failed", code)
    assert says in message
    assert "Use a .jsonl target" in message


def test_what_no_field_of_csv_can_hold_fails_before_a_row_is_asked(service: RunningService) -> None:
    status, code, message = _failed(service, ['{"a": [1]}'], target="t.csv")
    assert (status, code) == ("failed", "column_not_supported")
    assert "'a' is of type list" in message


def test_a_column_that_is_wider_or_newer_further_down_holds_all_its_rows(service: RunningService) -> None:
    lines = ['{"a": 1, "b": null, "c": []}'] * 20 + ['{"a": 1.5, "b": "x", "c": ["y"], "d": true}']
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    rows = answer_all(service, submit(service, "s.jsonl"))
    kept = [{name: row[name] for name in "abcd"} for row in (rows[0], rows[-1])]
    assert kept == [{"a": 1.0, "b": None, "c": [], "d": None}, {"a": 1.5, "b": "x", "c": ["y"], "d": True}]


@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl"])
def test_a_field_that_turns_up_further_down_is_kept_unless_a_list_of_columns_leaves_it_out(
    service: RunningService, target: str
) -> None:
    (service.data_root / "s.jsonl").write_text("\n".join(['{"a": 1}'] * 20 + ['{"a": 2, "later": 3}']))
    rows = answer_all(service, submit(service, "s.jsonl", target, passthrough=["a"]))
    assert [name for name in rows[-1] if name not in OUTPUT_COLUMNS] == ["a"]
    rows = answer_all(service, submit(service, "s.jsonl", target, overwrite=True))
    assert rows[-1]["later"] == 3


def test_a_csv_cell_that_is_not_utf8_is_an_error_row_and_the_others_are_unharmed(service: RunningService) -> None:
    (service.data_root / "s.csv").write_bytes(b"a,b\nx,1\n\xe9,2\n\xc3\xa9,3\n")
    rows = answer_all(service, submit(service, "s.csv", "t.csv"))
    assert [(row["a"], row["b"], row["llm_status"]) for row in rows] == [
        ("x", "1", "success"),
        ("", "", "error"),
        ("é", "3", "success"),
    ]
    assert rows[1]["llm_error"] == "invalid_utf8: The record that ends at line 3 is not UTF-8."


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([1_000, 1], pa.timestamp("ns")), "cannot be written into a prompt"),
        (pa.array([0, 2**40], pa.timestamp("s")), "date value out of range"),
        (pa.array([b"x", b"\xff"]).view(pa.string()), "invalid start byte"),
        (pa.array([None, b"x"]), "holds bytes"),
        (pa.array([None, 1], pa.duration("s")), "holds timedelta"),
    ],
)
def test_a_value_that_no_prompt_can_hold_is_an_error_row_and_the_others_are_unharmed(
    service: RunningService, column: pa.Array, says: str
) -> None:
    pq.write_table(pa.table({"a": column, "b": ["x", "y"]}), service.data_root / "s.parquet")
    rows = answer_all(service, submit(service, "s.parquet", prompt="{a} {b}", passthrough=["b"]))
    assert [(row["b"], row["llm_status"]) for row in rows] == [("x", "success"), ("y", "error")]
    assert rows[1]["llm_error"].startswith("not_text: ")
    assert says in rows[1]["llm_error"]


def test_results_can_be_read_whatever_times_they_hold(service: RunningService) -> None:
    table = pa.table({"n": pa.array([1], pa.timestamp("ns")), "t": pa.array([1], pa.timestamp("s"))})
    pq.write_table(table, service.data_root / "s.parquet")
    (row,) = answer_all(service, submit(service, "s.parquet", prompt="x"))
    assert (row["n"], row["t"]) == ("1970-01-01 00:00:00.000000001", "1970-01-01T00:00:01")


@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl", "t.csv"])
def test_results_are_read_whole_whatever_characters_they_hold(service: RunningService, target: str) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\x1csix\r\nseven\neight"
    (service.data_root / "s.jsonl").write_text(json.dumps({"a": text}, ensure_ascii=False) + "\n")
    (row,) = answer_all(service, submit(service, "s.jsonl", target))
    assert row["a"] == text


def test_results_can_be_limited_and_are_of_this_batch_or_none(service: RunningService) -> None:
    (service.data_root / "s.csv").write_text("a\n1\n2\n3\n")
    batch = submit(service, "s.csv")
    assert list(service.client.results(batch.id)) == []
    answer_all(service, batch)
    assert [row["a"] for row in service.client.results(batch.id, limit=2)] == ["1", "2"]
    answer_all(service, submit(service, "s.csv", overwrite=True))
    with pytest.raises(NotFoundError, match="was removed or replaced since"):
        list(service.client.results(batch.id))


def test_constants_of_every_kind_and_size_reach_the_prompt(service: RunningService) -> None:
    (service.data_root / "s.csv").write_text("a\nx\n")
    constants = {"n": 12345678901234567890123, "yes": True, "half": 0.5, "text": "{a}"}
    submit(service, "s.csv", prompt="{a} {n} {yes} {half} {text} {{n}}", constants=constants)
    service.plan()
    claimed = AnsweringWorker(service).claim()
    assert claimed is not None
    _, lines = claimed
    assert json.loads(bytes(lines[0].body))["messages"][0]["content"] == "x 12345678901234567890123 true 0.5 {a} {n}"


def test_a_batch_is_found_by_its_key(service: RunningService) -> None:
    (service.data_root / "s.csv").write_text("a\nx\n")
    batch = submit(service, "s.csv", "t1.csv", key="k")
    submit(service, "s.csv", "t2.csv", key="k2")
    assert service.client.find("k") == service.client.get(batch.id)
    assert service.client.find("nope") is None
    headers = {"Authorization": f"Bearer {service.token}"}
    page = httpx.get(f"{service.url}/v1/batches?key=k", headers=headers).json()
    assert [found["id"] for found in page["data"]] == [batch.id]


def test_a_result_in_json_lines_can_be_the_source_of_the_next_batch(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    answer_all(service, submit(service, "s.jsonl", "first.jsonl"))
    with pytest.raises(InvalidRequestError, match="'llm_output', which is the name of an output column"):
        submit(service, "first.jsonl", "second.jsonl")
    rows = answer_all(service, submit(service, "first.jsonl", "second.jsonl", prompt="{llm_output}", passthrough=["a"]))
    assert [(row["a"], row["llm_output"]) for row in rows] == [(1, "answer 0"), (2, "answer 1")]


def test_a_byte_order_mark_is_no_part_of_the_first_json_line(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    rows = answer_all(service, submit(service, "s.jsonl", "t.jsonl"))
    assert [(row["a"], row["llm_status"]) for row in rows] == [(1, "success"), (2, "success")]


def test_a_json_line_that_is_nested_too_deeply_is_an_error_row(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_text('{"a": 1}\n{"a": ' + "[" * 5000 + "]" * 5000 + "}\n")
    rows = answer_all(service, submit(service, "s.jsonl", "t.jsonl"))
    assert [row["llm_status"] for row in rows] == ["success", "error"]
    assert "Line 2 is nested too deeply" in rows[1]["llm_error"]
