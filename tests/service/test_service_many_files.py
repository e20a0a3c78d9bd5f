"""Tables of many files: folders, patterns, partitions and uploads; formats and compression; S3."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import OUTPUT_COLUMNS
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import answer_all


def submit(service: RunningService, source: str | Sequence[str], target: str, **options: Any) -> Batch:
    spec = DatasetSpec(
        source=source if isinstance(source, str) else list(source),
        target=target,
        messages=[Message(role="user", content=options.pop("prompt", "{text}"))],
        **options,
    )
    return service.client.submit(BatchCreate(dataset=spec, model="m"))


def write(root: Path, name: str, texts: Sequence[str], **more: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts), **more}), path)


def test_a_partitioned_folder_gives_a_folder_with_the_same_partitions(service: RunningService) -> None:
    root = service.data_root
    write(root, "in/ds=2026-01-01/lang=en/a.parquet", ["a", "b"])
    write(root, "in/ds=2026-01-02/lang=de/a.parquet", ["c"])
    write(root, "in/ds=2026-01-02/lang=__HIVE_DEFAULT_PARTITION__/b.parquet", ["d"])
    (root / "in/_SUCCESS").touch()
    (root / "in/.hidden.parquet").write_bytes(b"no table")
    batch = submit(service, "in/", "out/", prompt="{ds} {lang}: {text}")
    rows = answer_all(service, batch)
    assert [row["text"] for row in rows] == ["a", "b", "d", "c"]
    manifest = json.loads((root / "out/_manifest.json").read_text())
    assert [(file["uri"], file["rows"]) for file in manifest["files"]] == [
        (str(root / f"out/ds=2026-01-01/lang=en/a-{batch.id}.parquet"), 2),
        (str(root / f"out/ds=2026-01-02/lang=__HIVE_DEFAULT_PARTITION__/b-{batch.id}.parquet"), 1),
        (str(root / f"out/ds=2026-01-02/lang=de/a-{batch.id}.parquet"), 1),
    ]
    table = pq.ParquetDataset(root / "out", partitioning="hive").read()
    assert sorted(table["text"].to_pylist()) == ["a", "b", "c", "d"]
    assert manifest["rows"] == sum(manifest["counts"].values()) == 4
    assert not [path for path in root.rglob(".*") if path.name != ".hidden.parquet"]


def test_what_the_folders_say_reaches_the_prompt(service: RunningService) -> None:
    write(service.data_root, "in/day=a%20b/x.parquet", ["t"])
    submit(service, "in/day=a%20b/x.parquet", "out.parquet", prompt="{day}|{text}")
    assert service.plan()
    chunk = next(key for key in service.state.storage.list("batches") if "/chunks/" in key)
    with service.state.storage.open(chunk) as stream:
        line = zstandard.ZstdDecompressor().stream_reader(stream).read()
    assert json.loads(line)["body"] == {"messages": [{"role": "user", "content": "a b|t"}]}


def test_a_pattern_takes_some_of_the_files_and_a_list_takes_them_in_its_order(service: RunningService) -> None:
    root = service.data_root
    for name in ("x/1.parquet", "x/2.parquet", "x/deep/3.parquet", "x/4.csv"):
        write(root, name, [name]) if name.endswith("parquet") else (root / name).write_text("text\nx/4.csv\n")
    for source, found in (
        ("x/*.parquet", ["x/1.parquet", "x/2.parquet"]),
        ("x/**/*.parquet", ["x/1.parquet", "x/2.parquet", "x/deep/3.parquet"]),
        ("x/?.parquet", ["x/1.parquet", "x/2.parquet"]),
        (["x/deep/", "x/1.parquet"], ["x/deep/3.parquet", "x/1.parquet"]),
        (["x/4.csv", "x/1.parquet"], ["x/4.csv", "x/1.parquet"]),
    ):
        rows = answer_all(service, submit(service, source, "all.parquet", overwrite=True))
        assert [row["text"] for row in rows] == found


def test_a_folder_that_is_made_again_keeps_the_files_of_the_last_batch_only(service: RunningService) -> None:
    root = service.data_root
    write(root, "in/a.parquet", ["a"])
    write(root, "in/b.parquet", ["b"])
    first = submit(service, "in/", "out/")
    answer_all(service, first)
    (root / "in/b.parquet").unlink()
    with pytest.raises(InvalidRequestError, match="is a folder with tables in it"):
        submit(service, "in/", "out/")
    (root / "out/mine.txt").write_text("not the service's")
    second = submit(service, "in/", "out/", overwrite=True)
    answer_all(service, second)
    left = sorted(path.name for path in (root / "out").iterdir())
    assert left == ["_manifest.json", f"a-{second.id}.parquet", "mine.txt"]


def test_files_of_different_columns_go_into_a_folder_and_not_into_one_file(service: RunningService) -> None:
    root = service.data_root
    write(root, "in/a.parquet", ["a"], number=[1])
    write(root, "in/b.parquet", ["b"], other=[[1.5]])
    answer_all(service, submit(service, "in/", "out/"))
    (target,) = (root / "out").glob("b-*.parquet")
    assert pq.read_table(target).column_names[:2] == ["text", "other"]
    failed = submit(service, "in/", "one.parquet")
    assert service.plan()
    errors = service.client.get(failed.id).errors
    assert errors is not None
    assert errors.data[0].code == "schemas_differ"
    rows = answer_all(service, submit(service, "in/", "one.parquet", passthrough=["text"]))
    assert [row["text"] for row in rows] == ["a", "b"]


def test_one_file_that_lacks_a_column_of_the_template_fails_the_batch_by_its_name(service: RunningService) -> None:
    write(service.data_root, "in/a.parquet", ["a"])
    pq.write_table(pa.table({"other": ["x"]}), service.data_root / "in/b.parquet")
    batch = submit(service, "in/", "out/")
    assert service.plan()
    errors = service.client.get(batch.id).errors
    assert errors is not None
    assert "b.parquet has the columns other" in errors.data[0].message


COMPRESS = {"": lambda content: content, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("inner", ["jsonl", "csv"])
@pytest.mark.parametrize("outer", ["", ".gz", ".zst"])
@pytest.mark.parametrize("target", ["t.parquet", "t.jsonl.gz", "t.jsonl.zst", "t.csv.gz", "t.csv.zst"])
def test_compressed_tables_are_read_and_written(service: RunningService, inner: str, outer: str, target: str) -> None:
    lines = {"jsonl": '{"text": "ä"}\n{"text": "b\\n"}\n', "csv": 'text\nä\n"b\n"\n'}[inner]
    name = f"s.{inner}{outer}"
    (service.data_root / name).write_bytes(COMPRESS[outer](lines.encode()))
    rows = answer_all(service, submit(service, name, target))
    assert [row["text"] for row in rows] == ["ä", "b\n"]
    assert [row["llm_status"] for row in rows] == ["success", "success"]
    content = (service.data_root / target).read_bytes()
    magic = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "parquet": b"PAR1"}[target.rpartition(".")[2]]
    assert content.startswith(magic)


@pytest.mark.parametrize(("compression", "codec"), [(None, "ZSTD"), ("gzip", "GZIP"), ("none", "UNCOMPRESSED")])
def test_parquet_is_compressed_inside(service: RunningService, compression: str | None, codec: str) -> None:
    write(service.data_root, "s.parquet", ["a"] * 100)
    answer_all(service, submit(service, "s.parquet", "t.parquet", compression=compression))
    metadata = pq.read_metadata(service.data_root / "t.parquet")
    assert metadata.row_group(0).column(0).compression == codec


@pytest.mark.parametrize("name", ["s.jsonl.gz", "s.csv.gz", "s.jsonl.zst", "s.csv.zst"])
def test_a_compressed_table_that_breaks_off_is_refused_or_fails_with_a_sentence(
    service: RunningService, name: str
) -> None:
    words = [f"some words {random.random()}" for _ in range(30_000)]
    lines = ["text", *words] if ".csv" in name else [json.dumps({"text": word}) for word in words]
    whole = COMPRESS["." + name.rpartition(".")[2]]("\n".join(lines).encode())
    (service.data_root / name).write_bytes(b"no such thing")
    with pytest.raises(InvalidRequestError, match="is not a readable"):
        submit(service, name, "t.parquet")
    (service.data_root / name).write_bytes(whole[: len(whole) - 20])
    batch = submit(service, name, "t.parquet")
    assert service.plan()
    errors = service.client.get(batch.id).errors
    assert errors is not None
    assert "is not a readable" in errors.data[0].message


def _upload(service: RunningService, name: str, content: bytes, purpose: str = "dataset") -> str:
    answer = httpx.post(
        f"{service.url}/v1/files",
        headers={"Authorization": f"Bearer {service.token}"},
        files={"file": (name, content)},
        data={"purpose": purpose},
    )
    return str(answer.json()["id"])


def test_uploaded_files_are_the_pieces_of_one_table(service: RunningService) -> None:
    ids = []
    for texts in (["a", "b"], ["c"]):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": texts}), buffer)
        ids.append(_upload(service, "part.parquet", buffer.getvalue()))
    batch = submit(service, ids, "t.parquet")
    rows = answer_all(service, batch)
    assert [(row["text"], row["llm_output"]) for row in rows] == [
        ("a", "answer 0"),
        ("b", "answer 1"),
        ("c", "answer 2"),
    ]
    folder = submit(service, ids, "folder/")
    answer_all(service, folder)
    names = sorted(path.name for path in (service.data_root / "folder").iterdir())
    assert names == ["_manifest.json", f"part-00000-{folder.id}.parquet", f"part-00001-{folder.id}.parquet"]


def test_the_same_content_uploaded_again_is_the_same_batch(service: RunningService) -> None:
    content = b'{"text": "a"}\n'
    spec = DatasetSpec(source="x", target="t.jsonl", messages=[Message(role="user", content="{text}")])
    ids = [_upload(service, "rows.jsonl", content) for _ in range(2)]
    batches = {
        service.client.submit(BatchCreate(dataset=spec.model_copy(update={"source": [file_id]}), model="m", key="k")).id
        for file_id in ids
    }
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"source": "missing/*.parquet"}, "source_not_found", "matches no file"),
        ({"source": "mixed/"}, "format_not_supported", "notes.txt, which the source"),
        ({"source": ["ok.parquet", "ok.parquet"]}, "file_twice", "twice"),
        ({"target": "t.parquet.gz"}, "format_not_supported", "does not end in"),
        ({"target": "t.csv", "format": "parquet"}, "format_mismatch", "csv by its ending"),
        ({"target": "t.csv.gz", "compression": "zstd"}, "format_mismatch", "compression gzip by its ending"),
        ({"source": "nested.parquet", "target": "t.csv"}, "column_not_supported", "Column 'list' is of type list"),
        ({"source": "nested.parquet", "target": "folder/", "format": "csv"}, "column_not_supported", "list"),
        ({"source": "p=1/both.parquet"}, "duplicate_column", "lies in a folder that says p="),
        ({"parameters": {"n": 2}, "choices": ["a", "b"]}, "invalid_request", "Several samples"),
        ({"parameters": {"n": 2}, "target": "t.csv"}, "column_not_supported", "'llm_output' is of type list"),
        ({"parameters": {"best_of": 2}}, "unknown_parameter", "'best_of'"),
        ({"output_schema": {"type": "string"}}, "invalid_output_schema", "The output schema cannot be used"),
        ({"input": "{text}"}, "invalid_request", "`input` is for embeddings"),
    ],
)
def test_what_is_wrong_with_places_and_formats_is_said_at_submit(
    service: RunningService, options: dict[str, Any], code: str, says: str
) -> None:
    root = service.data_root
    write(root, "ok.parquet", ["a"])
    write(root, "mixed/a.parquet", ["a"])
    write(root, "p=1/both.parquet", ["a"], p=[1])
    (root / "mixed/notes.txt").write_text("x")
    write(root, "nested.parquet", ["a"], list=[[1]])
    given = {"source": "ok.parquet", "target": "t.parquet", **options}
    with pytest.raises(InvalidRequestError) as caught:
        submit(service, given.pop("source"), given.pop("target"), **given)
    assert caught.value.code == code, caught.value.message
    assert says in caught.value.message
    assert caught.value.message.endswith("Nothing was submitted.")


def test_samples_are_a_list_in_their_row(service: RunningService) -> None:
    write(service.data_root, "s.parquet", ["a"])
    batch = submit(service, "s.parquet", "t.parquet", parameters={"n": 3, "seed": 1})
    answer_all(service, batch)
    target = pq.read_table(service.data_root / "t.parquet")
    assert target.schema.field("llm_output").type == pa.list_(pa.string())
    assert set(OUTPUT_COLUMNS) <= set(target.column_names)
