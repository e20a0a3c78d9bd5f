"""A table through plan, parts and assembling: one target row per source row, in order, values unharmed."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_batch_llm.models import OUTPUT_COLUMNS, DutyKind
from airflow_batch_llm.service import table_duties
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.output_columns import OutputColumns
from airflow_batch_llm.service.parts import CountsError, PartFile
from airflow_batch_llm.service.publishing import Publisher
from airflow_batch_llm.service.rendering import Renderer
from airflow_batch_llm.service.sources import SourceRows
from airflow_batch_llm.service.table_assembler import Assembler
from airflow_batch_llm.service.template import Template
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_bad_input import submit

RICH = pa.table(
    {
        "a": list(range(10)),
        "tags": [["x", None], [], None, *[["y"]] * 7],
        "price": pa.array([decimal.Decimal("1.10")] * 10, pa.decimal128(20, 2)),
        "at": pa.array([datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * 10, pa.timestamp("ns", "UTC")),
        "nested": [{"b": 1, "c": [1.5]}] * 10,
        "kind": pa.array(["u", "v"] * 5).dictionary_encode(),
        "raw": [b"\x00\xff"] * 10,
    }
)


def _small_chunks(service: RunningService) -> None:
    service.settings = dataclasses.replace(service.settings, chunk_rows=4)


def test_parquet_columns_of_every_type_pass_through_in_order(service: RunningService) -> None:
    _small_chunks(service)
    pq.write_table(RICH, service.data_root / "rich.parquet")
    rows = answer_all(service, submit(service, "rich.parquet"))
    target = pq.read_table(service.data_root / "target.parquet")
    assert target.select(RICH.column_names).equals(RICH)
    assert target.column_names == [*RICH.column_names, *OUTPUT_COLUMNS]
    assert [row["llm_output"] for row in rows] == [f"answer {number}" for number in range(10)]


@pytest.mark.parametrize("kept", [[], ["a"], ["kind", "a"]])
def test_only_the_columns_asked_for_pass_through(service: RunningService, kept: list[str]) -> None:
    pq.write_table(RICH, service.data_root / "rich.parquet")
    answer_all(service, submit(service, "rich.parquet", passthrough=kept))
    target = pq.read_table(service.data_root / "target.parquet")
    assert target.column_names == [*[name for name in RICH.column_names if name in kept], *OUTPUT_COLUMNS]
    assert target["llm_output"].to_pylist() == [f"answer {number}" for number in range(10)]


def test_json_lines_are_repeated_to_the_letter(service: RunningService) -> None:
    lines = ['{"a": 12345678901234567890123, "z":1.10,"b":"\\u00e9 é", "n": {"k":[1e3, null]}}', '{"b":"","a":0}', "{}"]
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    answer_all(service, submit(service, "s.jsonl", "t.jsonl"))
    written = (service.data_root / "t.jsonl").read_text().splitlines()
    assert [line[: len(source) - 1] for line, source in zip(written, lines, strict=True)] == [
        source[:-1] for source in lines
    ]
    assert [json.loads(line)["llm_output"] for line in written] == ["answer 0", "answer 1", "answer 2"]


def test_csv_values_stay_text_to_the_letter(service: RunningService) -> None:
    text = 'a,b\n007,\n" 1.0 ","x, ""y""\nz"\nNULL,é\n'
    (service.data_root / "s.csv").write_text(text)
    rows = answer_all(service, submit(service, "s.csv", "t.csv"))
    assert [(row["a"], row["b"]) for row in rows] == [("007", ""), (" 1.0 ", 'x, "y"\nz'), ("NULL", "é")]


@pytest.mark.parametrize("source", ["s.parquet", "s.jsonl", "s.csv"])
@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl", "t.csv"])
def test_every_format_goes_into_every_other(service: RunningService, source: str, target: str) -> None:
    table = pa.table({"a": [3, 1, 2], "b": ["x", "é", "y"]})
    _write(table, service.data_root / source)
    rows = answer_all(service, submit(service, source, target))
    assert [(str(row["a"]), row["b"], row["llm_output"]) for row in rows] == [
        ("3", "x", "answer 0"),
        ("1", "é", "answer 1"),
        ("2", "y", "answer 2"),
    ]


def _write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        path.write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in table.to_pylist()))


def test_a_cancelled_batch_keeps_what_was_done_and_says_what_was_not(service: RunningService) -> None:
    _small_chunks(service)
    pq.write_table(RICH, service.data_root / "rich.parquet")
    batch = submit(service, "rich.parquet", key="k")
    service.plan()
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines[:3])])
    service.client.cancel(batch.id)
    worker.link.release(claim, [], outcome="stopped", rows_lost=1)
    service.assemble()
    ended = service.client.get(batch.id)
    assert ended.status == "cancelled"
    assert ended.manifest is not None
    assert ended.manifest.counts == {"success": 3, "cancelled": 7}
    undone = [row for row in service.client.results(batch.id) if row["llm_status"] == "cancelled"]
    assert all(row["llm_error"].startswith("batch_cancelled") for row in undone)
    # The next generation asks only for the rest.
    again = submit(service, "rich.parquet", key="k")
    assert again.generation == 2
    service.plan()
    assert service.client.get(again.id).progress.rows_done == 3
    assert worker.work() == 7
    service.assemble()
    rows = list(service.client.results(again.id))
    assert [row["llm_output"] for row in rows] == [f"answer {number}" for number in range(10)]


def test_a_planner_that_dies_leaves_nothing_and_the_next_one_plans_once(service: RunningService) -> None:
    pq.write_table(RICH, service.data_root / "rich.parquet")
    batch = submit(service, "rich.parquet")
    first = service.state.duties.claim(DutyKind.PLAN, holder="dead", lease_seconds=60)
    assert first is not None
    dead = runner(DutyKind.PLAN, service.settings)
    table_duties.plan_table(dead.context, service.state.life.for_duty(first), f"batches/{batch.id}/plan-1")
    assert service.client.get(batch.id).status == "validating"
    service.state.duties.free_those_of("dead")
    rows = answer_all(service, batch)
    assert len(rows) == 10
    assert not (service.settings.storage_root / "batches" / batch.id / "plan-1").exists()


@pytest.mark.parametrize("seam", ["publish", "publish_manifest"])
@pytest.mark.parametrize("before", [True, False])
def test_an_assembler_that_dies_around_an_effect_is_followed_by_one_that_ends_the_batch(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, seam: str, before: bool
) -> None:
    class Crash(BaseException):
        pass

    pq.write_table(RICH, service.data_root / "rich.parquet")
    batch = submit(service, "rich.parquet")
    service.plan()
    AnsweringWorker(service).work()
    real = getattr(Publisher, seam)

    def dying(*arguments: Any, **named: Any) -> None:
        """Dies before its work or right after."""
        if not before:
            real(*arguments, **named)
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Publisher, seam, dying)
        service.assemble()
    for holder in service.state.duties.holders():
        service.state.duties.free_those_of(holder)
    assert service.assemble()
    assert service.client.get(batch.id).status == "completed"
    assert pq.read_table(service.data_root / "target.parquet").num_rows == 10
    assert not list(service.data_root.glob(".*"))


def test_a_part_that_is_not_what_was_committed_holds_the_batch_up_and_that_is_said(service: RunningService) -> None:
    pq.write_table(RICH, service.data_root / "rich.parquet")
    batch = submit(service, "rich.parquet")
    service.plan()
    AnsweringWorker(service).work()
    part = next(service.state.chunks.parts_of_batch(batch.id))
    path = service.settings.storage_root / part.storage_key
    path.write_bytes(path.read_bytes()[:-1])
    service.assemble()
    held = service.client.get(batch.id)
    assert held.status == "finalizing"
    assert "its SHA-256 differs" in (held.progress.waiting_for or "")
    assert not (service.data_root / "target.parquet").exists()


def test_rows_that_are_missing_or_doubled_never_make_a_target(service: RunningService, tmp_path: Path) -> None:
    pq.write_table(RICH, service.data_root / "rich.parquet")
    batch = submit(service, "rich.parquet")
    service.plan()
    AnsweringWorker(service).work()
    plan_key = service.state.batches.get("default", batch.id)["plan_key"]
    parts = [
        PartFile(part.storage_key, part.sha256, part.rows) for part in service.state.chunks.parts_of_batch(batch.id)
    ]
    for wrong in (parts[1:], [*parts, parts[0]]):
        output = OutputColumns(pa.schema([(name, pa.string()) for name in OUTPUT_COLUMNS]))
        assembler = Assembler(service.state.storage, plan_key, wrong, 10, None, output, tmp_path)
        with pytest.raises(CountsError):
            assembler.load()
        assembler.close()
        (tmp_path / "work.duckdb").unlink()


@given(st.lists(st.tuples(st.sampled_from(["{a}", "{{a}}", "{", "}", "{ a }", "{1}", "{}", "x", "{{", "\n"]))))
def test_a_template_replaces_its_placeholders_and_leaves_every_other_brace(pieces: list[tuple[str]]) -> None:
    text = "|".join(piece for (piece,) in pieces)
    shown = "|".join({"{a}": "{value}", "{{a}}": "{a}"}.get(piece, piece) for (piece,) in pieces)
    rows = SourceRows(pa.record_batch([]), pa.record_batch({"a": ["{value}", None]}))
    ((_, (texts,)),) = Renderer([Template.parse(text)], {}).render(rows)
    assert texts.to_pylist() == [shown, shown.replace("{value}", "")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=30))
def test_any_json_lines_come_back_in_order_and_equal(service: RunningService, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    (service.data_root / "any.jsonl").write_text("\n".join(lines))
    batch = submit(service, "any.jsonl", "any_target.jsonl", prompt="x", overwrite=True)
    answer_all(service, batch)
    for row, line in zip(rows, (service.data_root / "any_target.jsonl").read_text().splitlines(), strict=True):
        back = json.loads(line)
        assert {name: value for name, value in back.items() if name not in OUTPUT_COLUMNS} == row
