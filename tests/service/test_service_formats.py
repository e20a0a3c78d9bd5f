"""Every format into every other: any rows come back in order, their columns equal by the rule of the target's format.

The rules are those of README, section "Formats".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker

KINDS = ("parquet", "jsonl", "csv")
SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64()), ("real", pa.float64()), ("flag", pa.bool_())])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
ROW = st.fixed_dictionaries(
    {
        "text": st.none() | TEXT,
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "real": st.none() | st.floats(),
        "flag": st.none() | st.booleans(),
    }
)
OUTER = st.sampled_from(["", ".gz", ".zst"])
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
UNPACK = {
    "": bytes,
    ".gz": gzip.decompress,
    ".zst": lambda content: zstandard.ZstdDecompressor().stream_reader(content).read(),
}


def written(kind: str, rows: list[dict[str, Any]]) -> bytes:
    """The table as such a file."""
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return b"".join(json.dumps(without_nan(row)).encode() + b"\n" for row in rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(SCHEMA.names)
    writer.writerows([as_csv(row[name]) for name in SCHEMA.names] for row in rows)
    return text.getvalue().encode()


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def as_csv(value: Any) -> str:
    return "" if value is None else str(value)


def read(kind: str, content: bytes) -> list[dict[str, Any]]:
    if kind == "parquet":
        return list(pq.read_table(io.BytesIO(content)).to_pylist())
    if kind == "jsonl":
        return [json.loads(line) for line in content.decode().split("\n") if line]
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def expected(inner: str, outer: str, row: dict[str, Any]) -> dict[str, Any]:
    """The rule: what a row of one format is in another."""
    if inner == "csv":
        row = {name: as_csv(value) for name, value in row.items()}  # every value is text, to the letter
    elif inner == "jsonl" or outer == "jsonl":
        row = without_nan(row)  # JSON has no such numbers: they are null
    if outer == "csv":
        return {name: value if isinstance(value, str) else text_of(value) for name, value in row.items()}
    return row


def text_of(value: Any) -> Any:
    """A number or a truth value in CSV, as pyarrow spells it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, str):
        found = float(found)
    elif isinstance(wanted, int) and not isinstance(wanted, bool) and isinstance(found, str):
        found = int(found)
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return bool(found == wanted)


@pytest.mark.parametrize("inner", KINDS)
@pytest.mark.parametrize("outer", KINDS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows_come_back_in_order_and_equal(
    service: RunningService, inner: str, outer: str, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(ROW, min_size=1, max_size=20))
    # A CSV of one row of empty fields only is a blank line, which is no row: the number of fields tells them apart.
    before, after = (data.draw(OUTER) if kind != "parquet" else "" for kind in (inner, outer))
    source, target = service.data_root / f"s.{inner}{before}", service.data_root / f"t.{outer}{after}"
    source.write_bytes(PACK[before](written(inner, rows)))
    if inner == "jsonl" and outer == "parquet" and not fits(rows):
        return
    found = read(outer, UNPACK[after](answered(service, source, target).read_bytes()))
    assert len(found) == len(rows)
    for number, (one, row) in enumerate(zip(found, rows, strict=True)):
        assert one["llm_output"] == f"answer {number}"
        for name, value in expected(inner, outer, row).items():
            assert same(one.get(name), value), (name, one.get(name), value)


def fits(rows: list[dict[str, Any]]) -> bool:
    """Whether the numbers of a JSON field have one type: 1.0 and 1 beside 2**60 have none, and that is refused."""
    return all(row["real"] is None or row["real"] != int(row["real"]) for row in map(without_nan, rows))


def answered(service: RunningService, source: Path, target: Path) -> Path:
    spec = DatasetSpec(
        source=source.name, target=target.name, messages=[Message(role="user", content="{text}")], overwrite=True
    )
    batch = service.client.submit(BatchCreate(dataset=spec, model="m"))
    assert service.plan()
    errors = service.client.get(batch.id).errors
    assert errors is None, errors
    AnsweringWorker(service).work()
    assert service.assemble()
    assert service.client.get(batch.id).status == "completed"
    return target
