"""Bad input gets a clear error, and nothing is lost: each case with the sentence that a user sees."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import duties
from airflow_batch_llm.service.sources import ROWS
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker, answer_all


def submit(
    service: RunningService, source: str, target: str = "target.parquet", *, prompt: str = "{a}", **spec: Any
) -> Batch:
    named = {name: spec.pop(name) for name in ("key", "series") if name in spec}
    dataset = DatasetSpec(source=source, target=target, messages=[Message(role="user", content=prompt)], **spec)
    return service.client.submit(BatchCreate(dataset=dataset, model="m", **named))


def write(folder: Path) -> None:
    """The tables of the cases."""
    (folder / "ok.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (folder / "ok.csv").write_text("a,b\n1,x\n2,y\n")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "blank.jsonl").write_bytes(b"\n \n")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "header.csv").write_text("a,b\n")
    (folder / "latin.csv").write_bytes("a\né\n".encode("latin-1"))
    (folder / "latin_names.csv").write_bytes("é\nx\n".encode("latin-1"))
    (folder / "twice.csv").write_text("a,a\n1,2\n")
    (folder / "open_quote.csv").write_text('a,b\n1,"x\n2,y\n')
    (folder / "is_csv.jsonl").write_text("a,b\n1,2\n")
    (folder / "not.parquet").write_bytes(b"nope")
    (folder / "table.txt").write_text("a\n1\n")
    (folder / "folder.csv").mkdir()
    (folder / "out").symlink_to("/etc")
    (folder / "loop.csv").symlink_to("loop.csv")
    (folder / "clash.csv").write_text("a,llm_status\n1,2\n")
    (folder / "taken.parquet").write_bytes(b"somebody's")
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), folder / "empty.parquet")
    pq.write_table(pa.table({"a": [1], "llm_output": ["x"]}), folder / "clash.parquet")
    pq.write_table(pa.table({"a": [1], "n": [[1, 2]]}), folder / "nested.parquet")
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), folder / "twice.parquet")
    pq.write_table(pa.table({"a": [1], "t": pa.array([1], pa.timestamp("ns"))}), folder / "stamps.parquet")
    write_damaged(folder / "damaged.parquet", good_rows=0)


def write_damaged(path: Path, *, good_rows: int) -> None:
    """A Parquet file whose end can be read, and of whose rows the first ``good_rows`` only."""
    whole = pa.table({"a": [f"{'x' * 100}{number}" for number in range(good_rows + 5_000)]})
    pq.write_table(whole, path, compression="zstd", row_group_size=good_rows or None)
    content = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        at = file.metadata.row_group(1 if good_rows else 0).column(0).dictionary_page_offset
    content[at + 40 : at + 200] = b"\xff" * 160
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ({"source": "ok.csv", "prompt": "{zz}"}, "unknown_column", "{zz}, which is neither a column"),
        ({"source": "empty.parquet"}, "empty_source", "has no rows"),
        ({"source": "empty.jsonl"}, "empty_source", "has no rows"),
        ({"source": "blank.jsonl"}, "empty_source", "has no rows"),
        ({"source": "header.csv"}, "empty_source", "has no rows"),
        ({"source": "empty.csv"}, "empty_source", "not even a line of column names"),
        ({"source": "clash.parquet"}, "column_clash", "'llm_output', which is the name of an output column"),
        ({"source": "ok.csv", "target": "taken.parquet"}, "target_exists", "no manifest stands beside it"),
        ({"source": "latin.csv"}, "source_unreadable", "The record that ends at line 2 is not UTF-8"),
        ({"source": "latin_names.csv"}, "invalid_utf8", "its first line has other bytes"),
        ({"source": "twice.csv"}, "duplicate_column", "more than one column named 'a'"),
        ({"source": "open_quote.csv"}, "invalid_csv", "cannot be read as CSV at line 3"),
        ({"source": "is_csv.jsonl"}, "source_unreadable", "Line 1 is not valid JSON"),
        ({"source": "not.parquet"}, "source_unreadable", "is not a readable Parquet file"),
        ({"source": "table.txt"}, "format_not_supported", "does not end in .parquet"),
        ({"source": "folder.csv"}, "source_not_found", "holds no file that is a table"),
        ({"source": "gone.csv"}, "source_not_found", "does not exist"),
        ({"source": "ok.csv", "target": "x.txt"}, "format_not_supported", "does not end in .parquet"),
        ({"source": "ok.csv", "target": "ok.csv"}, "target_is_source", "is the source itself"),
        ({"source": "nested.parquet", "target": "x.csv"}, "column_not_supported", "'n' is of type list"),
        ({"source": "ok.csv", "passthrough": ["zz"]}, "unknown_column", "passthrough names 'zz'"),
        ({"source": "ok.csv", "constants": {"a": 1}}, "constant_clash", "'a' is also a column"),
        ({"source": "ok.csv", "parameters": {"guided_choice": []}}, "unknown_parameter", "ignore it in silence"),
        ({"source": "ok.csv", "parameters": {"temperature": "hot"}}, "invalid_parameter", "'temperature' is 'hot'"),
        ({"source": "ok.csv", "parameters": {"seed": 2**70}}, "invalid_value", "`dataset.parameters.seed` is a number"),
        ({"source": "ok.csv", "parameters": {"top_k": 10**30}}, "invalid_value", "does not fit in 64 bits"),
        (
            {"source": "ok.csv", "parameters": {"chat_template_kwargs": {"a": [10**30]}}},
            "invalid_value",
            "`dataset.parameters.chat_template_kwargs.a.0` is a number that does not fit in 64 bits",
        ),
        (
            {"source": "ok.csv", "output_schema": {"properties": {"a": {"type": "integer", "maximum": 10**40}}}},
            "invalid_value",
            "`dataset.output_schema.properties.a.maximum` is a number that does not fit in 64 bits",
        ),
        ({"source": "ok.csv", "choices": ["x", "x"]}, "invalid_choices", "are the same"),
        ({"source": "/etc/passwd"}, "place_not_allowed", "outside the data root"),
        ({"source": "../ok.csv"}, "place_not_allowed", "outside the data root"),
        ({"source": "out/passwd"}, "place_not_allowed", "outside the data root"),
        ({"source": "file:///etc/passwd"}, "place_not_allowed", "outside the data root"),
        ({"source": "ok.csv", "target": "out/x.csv"}, "place_not_allowed", "outside the data root"),
        ({"source": "ok.csv", "target": "/tmp/x.csv"}, "place_not_allowed", "outside the data root"),
        ({"source": "http://host/x.csv"}, "place_not_supported", "neither a local path nor a file:// or s3:// URI"),
        ({"source": "s3://bucket/x.csv"}, "place_not_allowed", "lies outside the data roots"),
        ({"source": "file://host/x.csv"}, "place_not_supported", "neither a local path nor a file:// or s3:// URI"),
        ({"source": "a\0.csv"}, "invalid_value", "U+0000 at position 1"),
        ({"source": "http://[host/x.csv"}, "place_not_supported", "is not a usable place"),
        ({"source": "loop.csv"}, "place_not_supported", "is not a usable place"),
        ({"source": "ok.csv", "target": "loop.csv"}, "place_not_supported", "is not a usable place"),
        ({"source": "ok.csv", "target": "x" * 5000 + ".csv"}, "place_not_supported", "File name too long"),
        ({"source": "damaged.parquet"}, "source_unreadable", "is damaged"),
        ({"source": "twice.parquet"}, "duplicate_column", "more than one column named 'a'"),
        ({"source": "clash.csv"}, "column_clash", "'llm_status', which is the name of an output column"),
        ({"source": "ok.csv", "target": "folder.csv"}, "target_is_folder", "is a folder"),
        ({"source": "stamps.parquet", "target": "x.jsonl"}, "column_not_supported", "'t' is of type timestamp[ns]"),
    ],
)
def test_what_is_wrong_is_said_at_submit(
    service: RunningService, arguments: dict[str, Any], code: str, says: str
) -> None:
    write(service.data_root)
    with pytest.raises(InvalidRequestError) as caught:
        submit(service, **arguments)
    assert caught.value.code == code
    assert says in caught.value.message
    assert any(end in caught.value.message for end in ("Nothing was submitted.", "Nothing was done."))
    assert service.client.list().data == []


def test_a_target_may_be_replaced_when_told_so(service: RunningService) -> None:
    write(service.data_root)
    batch = submit(service, "ok.csv", "taken.parquet", overwrite=True)
    assert len(answer_all(service, batch)) == 2


@pytest.mark.parametrize("named", [{"key": "k", "series": "s"}, {"key": "k"}])
def test_a_target_may_be_replaced_by_a_later_batch_of_its_series_but_by_no_other(
    service: RunningService, named: dict[str, str]
) -> None:
    write(service.data_root)
    answer_all(service, submit(service, "ok.csv", **named))
    with pytest.raises(InvalidRequestError, match="wrote it"):
        submit(service, "ok.csv", key="another")
    if "series" in named:
        assert len(answer_all(service, submit(service, "ok.csv", key="k/2", series="s"))) == 2


def test_a_model_that_no_worker_serves_is_waited_for_and_that_is_said(service: RunningService) -> None:
    write(service.data_root)
    batch = submit(service, "ok.csv")
    service.plan()
    waiting = service.client.get(batch.id).progress.waiting_for
    assert waiting is not None
    assert "no living worker serves model 'm'" in waiting


def test_a_broken_json_line_is_an_error_row_with_its_number_and_the_others_are_unharmed(
    service: RunningService,
) -> None:
    lines = [b'{"a": 1}', b'{"a":', b"[1]", b"\xff", b"", b'{"a": 6}']
    (service.data_root / "broken.jsonl").write_bytes(b"\n".join(lines))
    rows = answer_all(service, submit(service, "broken.jsonl", "target.jsonl"))
    assert [row["llm_status"] for row in rows] == ["success", *["error"] * 3, "success"]
    says = ["Line 2 is not valid JSON", "Line 3 holds list", "Line 4 is not"]
    for row, sentence in zip(rows[1:4], says, strict=True):
        assert sentence in row["llm_error"]
    assert [row.get("a") for row in rows] == [1, None, None, None, 6]


def test_a_late_field_of_an_output_columns_name_is_an_error_row(service: RunningService) -> None:
    lines = ['{"a": 1}'] * ROWS + ['{"a": 2, "llm_status": 1}']
    (service.data_root / "late.jsonl").write_text("\n".join(lines))
    batch = submit(service, "late.jsonl", "target.jsonl")
    service.plan()
    AnsweringWorker(service, part_rows=ROWS).work()
    service.assemble()
    rows = list(service.client.results(batch.id))
    assert [row["llm_status"] for row in rows] == [*["success"] * ROWS, "error"]
    assert f"Line {ROWS + 1} has 'llm_status'" in rows[-1]["llm_error"]


def test_a_ragged_csv_record_is_an_error_row_with_its_line(service: RunningService) -> None:
    (service.data_root / "ragged.csv").write_text("a,b\n1,x\n2\n3,y,z\n4,w\n")
    rows = answer_all(service, submit(service, "ragged.csv"))
    assert [row["llm_status"] for row in rows] == ["success", "error", "error", "success"]
    assert "ends at line 3 has 1 fields" in rows[1]["llm_error"]
    assert "ends at line 4 has 3 fields" in rows[2]["llm_error"]


def test_fields_of_mixed_types_are_refused_by_parquet_and_kept_by_json_lines(service: RunningService) -> None:
    (service.data_root / "mixed.jsonl").write_text('{"a": 1}\n{"a": "x"}\n')
    failed = submit(service, "mixed.jsonl", "target.parquet")
    service.plan()
    errors = service.client.get(failed.id).errors
    assert errors is not None
    assert (errors.data[0].code, service.client.get(failed.id).status) == ("mixed_types", "failed")
    rows = answer_all(service, submit(service, "mixed.jsonl", "target.jsonl"))
    assert [row["a"] for row in rows] == [1, "x"]


def test_a_source_that_changed_after_the_submit_is_not_run(service: RunningService) -> None:
    write(service.data_root)
    batch = submit(service, "ok.csv")
    (service.data_root / "ok.csv").write_text("a,b\n7,x\n8,y\n9,z\n")
    service.plan()
    ended = service.client.get(batch.id)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert ended.errors.data[0].code == "source_changed"


def test_a_full_disk_holds_a_batch_up_and_loses_nothing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(service.data_root)
    batch = submit(service, "ok.csv")
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(LocalTree, "publish", _disk_full)
        assert answer_all(service, batch, assemble_once=True) == []
    waiting = service.client.get(batch.id)
    assert waiting.status == "finalizing"
    assert "No space left on device" in (waiting.progress.waiting_for or "")
    service.assemble()
    assert service.client.get(batch.id).status == "completed"


def _disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "target.parquet")
