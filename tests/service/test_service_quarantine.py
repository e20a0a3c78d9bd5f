"""A quarantine: a copy of the rows that failed, written with the target and with the same care."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from airflow_batch_llm.errors import ConflictError, InvalidRequestError
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.service import duties, table_duties
from airflow_batch_llm.service.spec import content_sha256
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Manifest, Message
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.test_service_bad_input import submit
from tests.service.test_service_delete import delete
from tests.service.test_service_duties import Killed, _overtaken, waits_for
from tests.service.test_service_ends import ENDS

FAILING, INVALID = {1, 7}, {4}
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".zst": lambda content: zstandard.ZstdDecompressor().decompressobj().decompress(content),
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(table_duties, "ENDING_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def table(service: RunningService) -> Path:
    path = service.data_root / "s.parquet"
    pq.write_table(pa.table({"a": [f"text {row}" for row in range(10)], "n": list(range(10))}), path)
    return path


def asked(service: RunningService, **spec: Any) -> Batch:
    """A batch with a quarantine, of which all rows are done and nothing is assembled."""
    batch = submit(service, "s.parquet", **{"quarantine": "bad.parquet", **spec})
    while service.plan():
        pass
    AnsweringWorker(service, failing=FAILING, invalid=INVALID).work()
    return batch


def done(service: RunningService, **spec: Any) -> Manifest:
    return ended(service, asked(service, **spec))


def ended(service: RunningService, batch: Batch) -> Manifest:
    for _ in range(4):  # one for a batch before it, and not for ever where it meets trouble
        service.assemble()
    manifest = service.client.get(batch.id).manifest
    assert manifest is not None
    return manifest


def read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns (JSON lines have none by themselves) and the rows of a file."""
    name, packing = (path.stem, path.suffix) if path.suffix in UNPACK else (path.name, "")
    content = UNPACK[packing](path.read_bytes())
    if name.endswith(".jsonl"):
        return [], [json.loads(line) for line in content.splitlines()]
    if name.endswith(".csv"):
        records = csv.DictReader(io.StringIO(content.decode()))
        return list(records.fieldnames or ()), list(records)
    table = pq.read_table(pa.BufferReader(content))
    return table.schema.names, table.to_pylist()


@pytest.mark.parametrize(
    ("target", "quarantine"),
    [
        ("t.parquet", "bad.parquet"),
        ("t.jsonl", "sub/bad.jsonl.zst"),
        ("t.csv.gz", "bad.csv"),
        ("t.csv", "bad.csv.gz"),
        ("folder/", "bad.parquet"),
        ("folder/", "folder/_bad.parquet"),
    ],
)
@pytest.mark.parametrize("failing", [FAILING, set()], ids=["some fail", "none fails"])
def test_the_rows_that_failed_are_copied_in_source_order_with_the_columns_of_the_target(
    service: RunningService, target: str, quarantine: str, failing: set[int]
) -> None:
    batch = submit(service, "s.parquet", target, quarantine=quarantine)
    assert service.plan()
    AnsweringWorker(service, failing=failing, invalid=INVALID if failing else ()).work()
    manifest = ended(service, batch)
    assert manifest.quarantine is not None
    path = Path(manifest.quarantine.uri)
    assert path == service.data_root / quarantine
    content = path.read_bytes()
    assert (manifest.quarantine.bytes, manifest.quarantine.sha256) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    columns, copies = read(path)
    target_columns, rows = read(Path(manifest.files[0].uri))
    assert (columns, len(rows)) == (target_columns, 10)
    assert copies == [row for row in rows if row["llm_status"] != "success"]
    assert [int(row["n"]) for row in copies] == sorted(failing | (INVALID if failing else set()))
    assert manifest.quarantine.rows == len(copies)
    assert not list(service.data_root.rglob(".*"))


def test_json_lines_are_repeated_to_the_letter(service: RunningService) -> None:
    lines = [f'{{"a" :"{row}", "deep": {{"x":[1,  2]}}}}' for row in range(10)]
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    batch = submit(service, "s.jsonl", "t.jsonl", quarantine="bad.jsonl")
    assert service.plan()
    AnsweringWorker(service, failing=FAILING).work()
    ended(service, batch)
    copies = (service.data_root / "bad.jsonl").read_text().splitlines()
    assert [copy.startswith(lines[row][:-1]) for copy, row in zip(copies, sorted(FAILING), strict=True)] == [True] * 2


def test_a_row_that_cannot_be_asked_and_every_copy_of_a_failed_row_are_rows_that_failed(
    service: RunningService,
) -> None:
    (service.data_root / "s.jsonl").write_text('{"a": "x"}\nbroken\n{"a": "y"}\n{"a": "x"}\n')
    AnsweringWorker(service, engine_identity="e")
    batch = submit(service, "s.jsonl", "t.jsonl", quarantine="bad.jsonl")
    assert service.plan()
    assert service.client.get(batch.id).progress.rows_duplicate == 1
    AnsweringWorker(service, engine_identity="e", failing={0}).work()
    ended(service, batch)
    _, copies = read(service.data_root / "bad.jsonl")
    assert [copy.get("a") for copy in copies] == ["x", None, "x"]


@pytest.mark.parametrize(("status", "end"), ENDS)
def test_rows_that_a_batch_did_not_come_to_have_not_failed(
    service: RunningService, status: str, end: Callable[[RunningService, str], None]
) -> None:
    batch = submit(service, "s.parquet", quarantine="bad.parquet")
    assert service.plan()
    worker = AnsweringWorker(service, failing=FAILING)
    claim, lines = worker.claim()  # type: ignore[misc]
    worker.link.extend(claim, [worker.store(claim, 0, [line for line in lines if line.row in (0, 1)])])
    end(service, batch.id)
    worker.link.release(claim, [], outcome="stopped")
    manifest = ended(service, batch)
    assert manifest.counts == {"success": 1, "error": 1, status: 8}
    assert [row["n"] for row in read(service.data_root / "bad.parquet")[1]] == [1]


def test_a_generation_that_mends_the_failed_rows_leaves_none_in_the_quarantine(service: RunningService) -> None:
    first = asked(service, key="k")
    assert ended(service, first).quarantine.rows == 3  # type: ignore[union-attr]
    again = service.client.retry(first.id)
    assert service.plan()
    assert AnsweringWorker(service).work() == 3
    assert ended(service, again).quarantine.rows == 0  # type: ignore[union-attr]
    assert read(service.data_root / "bad.parquet")[1] == []


def test_the_failed_rows_of_many_files_are_in_one_quarantine(service: RunningService) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"a": [f"{name}{row}" for row in range(5)]}), service.data_root / f"{name}.in.parquet")
    batch = submit(service, "*.in.parquet", "out/", quarantine="bad.parquet")
    assert service.plan()
    AnsweringWorker(service, failing=FAILING).work()
    ended(service, batch)
    assert [row["a"] for row in read(service.data_root / "bad.parquet")[1]] == ["a1", "b2"]


def test_files_of_different_columns_have_no_quarantine_in_common(service: RunningService) -> None:
    pq.write_table(pa.table({"a": ["x"], "other": [1]}), service.data_root / "t.parquet")
    batch = submit(service, ["s.parquet", "t.parquet"], "out/", quarantine="bad.parquet")  # type: ignore[arg-type]
    assert service.plan()
    failed = service.client.get(batch.id)
    assert failed.errors is not None
    assert (failed.status, failed.errors.data[0].code) == ("failed", "schemas_differ")
    assert "do not fit into one quarantine" in failed.errors.data[0].message


@pytest.mark.parametrize(
    ("target", "quarantine", "code"),
    [
        ("t.parquet", "t.parquet", "quarantine_is_target"),
        ("t.parquet", "sub/../t.parquet", "quarantine_is_target"),
        ("t.parquet", "link.parquet", "quarantine_is_target"),
        ("t.parquet", "s.parquet", "quarantine_is_source"),
        ("t.parquet", "bad.jsonl", "format_mismatch"),
        ("t.parquet", "bad/", "quarantine_is_folder"),
        ("t.parquet", "sub", "quarantine_is_folder"),
        ("t.parquet", "bad.txt", "format_not_supported"),
        ("t.parquet", "t.parquet.manifest.json", "format_not_supported"),
        ("out/", "out/bad.parquet", "quarantine_in_target"),
        ("out/", "out/ds=1/bad.parquet", "quarantine_in_target"),
        ("out/", "bad.csv", "format_mismatch"),
        ("t.parquet", "taken.parquet", "quarantine_exists"),
    ],
)
def test_a_place_that_cannot_be_a_quarantine_is_refused_at_submit(
    service: RunningService, target: str, quarantine: str, code: str
) -> None:
    (service.data_root / "sub").mkdir()
    (service.data_root / "link.parquet").symlink_to("t.parquet")
    (service.data_root / "taken.parquet").write_bytes(b"somebody's")
    with pytest.raises(InvalidRequestError, match=r"Quarantine .* Nothing was submitted") as refusal:
        submit(service, "s.parquet", target, quarantine=quarantine, overwrite=code != "quarantine_exists")
    assert (refusal.value.code, refusal.value.param) == (code, "dataset.quarantine")
    assert service.client.list().data == []


def test_a_quarantine_is_its_own_until_somebody_changes_it(service: RunningService) -> None:
    done(service, key="k/1", series="s")
    assert done(service, key="k/2", series="s", passthrough=["n"]).quarantine is not None
    assert read(service.data_root / "bad.parquet")[0][0] == "n"
    with pytest.raises(InvalidRequestError, match="is not as a batch of this key or series has left it"):
        submit(service, "s.parquet", "other.parquet", quarantine="bad.parquet", key="another")
    mended = (service.data_root / "bad.parquet").read_bytes() + b"mended by hand"
    (service.data_root / "bad.parquet").write_bytes(mended)
    with pytest.raises(InvalidRequestError) as refusal:
        submit(service, "s.parquet", quarantine="bad.parquet", key="k/3", series="s")
    assert refusal.value.code == "quarantine_exists"
    assert (service.data_root / "bad.parquet").read_bytes() == mended
    done(service, key="k/3", series="s", overwrite=True)
    assert len(read(service.data_root / "bad.parquet")[1]) == 3


def test_a_quarantine_that_the_manifest_of_the_target_lists_is_its_own_without_any_record(
    service: RunningService,
) -> None:
    batch = asked(service, key="k")
    ended(service, batch)
    delete(service, batch.id)
    assert done(service, key="k", passthrough=[]).batch_id != batch.id


def test_a_changed_quarantine_is_another_content(service: RunningService) -> None:
    batch = submit(service, "s.parquet", quarantine="bad.parquet", key="k")
    assert submit(service, "s.parquet", quarantine="bad.parquet", key="k").id == batch.id
    for spec in ({"quarantine": "other.parquet"}, {}):
        with pytest.raises(ConflictError):
            submit(service, "s.parquet", key="k", **spec)


def test_a_batch_without_a_quarantine_has_the_content_that_it_had_before_there_were_any() -> None:
    """Else every batch that lives while the service is brought up to date would be another one."""
    spec = DatasetSpec(source="s.parquet", target="t.parquet", messages=[Message(role="user", content="{a}")])
    assert content_sha256(spec, "m", CHAT_COMPLETIONS, []).startswith("fe413d83")


def test_a_dry_run_writes_none(service: RunningService) -> None:
    (service.data_root / "taken.parquet").write_bytes(b"somebody's")
    messages = [Message(role="user", content="{a}")]
    for target in ("t.parquet", None):
        spec = DatasetSpec(source="s.parquet", target=target, quarantine="taken.parquet", messages=messages)
        batch = service.client.submit(BatchCreate(dataset=spec, model="m", dry_run=True))
        assert service.plan()
        while service.assemble():
            pass
        assert service.client.get(batch.id).estimate is not None
    assert (service.data_root / "taken.parquet").read_bytes() == b"somebody's"
    outside = spec.model_copy(update={"quarantine": "/etc/bad.parquet"})
    with pytest.raises(InvalidRequestError, match="lies outside the data root"):
        service.client.submit(BatchCreate(dataset=outside, model="m", dry_run=True))


@BOTH_STORES
@pytest.mark.parametrize(
    ("target", "effects"), [("target.parquet", 1), ("target.parquet", 2), ("target.parquet", 3), ("target/", 2)]
)
def test_an_assembler_that_dies_between_target_quarantine_and_manifest_is_followed_by_one_that_ends_it(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, target: str, effects: int
) -> None:
    batch = asked(service, target=target, key="k")
    order = _dies_after(service, monkeypatch, effects)
    file = "target" if target.endswith("/") else "target.parquet"
    names = [file, "bad.parquet", "_manifest.json" if target.endswith("/") else "target.parquet.manifest.json"]
    assert [name if name in names else file for name in order] == names[:effects]
    manifest = ended(service, batch)
    _check_whole(service, manifest, rows=3)
    assert service.client.get(batch.id).status == "completed"


@BOTH_STORES
@pytest.mark.parametrize("effects", [1, 2])
def test_a_batch_that_is_superseded_over_its_quarantine_leaves_all_three_before_the_next_one_writes(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, effects: int
) -> None:
    half = asked(service, key="k1", series="s", passthrough=["n"])
    _dies_after(service, monkeypatch, effects)
    newest = submit(service, "s.parquet", quarantine="bad.parquet", key="k2", series="s")
    assert service.client.get(half.id).status == "cancelling"
    assert service.plan()
    AnsweringWorker(service).work()
    assert service.assemble()
    first = service.client.get(half.id).manifest
    assert first is not None
    _check_whole(service, first, rows=3)
    _check_whole(service, ended(service, newest), rows=0)


def test_a_superseded_batch_that_has_published_nothing_writes_no_quarantine(service: RunningService) -> None:
    older = asked(service, key="k1", series="s")
    submit(service, "s.parquet", quarantine="other.parquet", key="k2", series="s")
    assert service.assemble()
    assert (service.client.get(older.id).status, service.client.get(older.id).manifest) == ("cancelled", None)
    assert not (service.data_root / "bad.parquet").exists()


def test_an_attempt_that_was_overtaken_over_its_target_leaves_the_quarantine_of_a_newer_generation_alone(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = asked(service, key="k")
    publish, published = LocalTree.publish, []

    def late(tree: LocalTree, path: Path, uri: str, **named: Any) -> None:
        publish(tree, path, uri, **named)
        published.append(Path(uri).name)
        if len(published) == 1:
            _overtaken(service)
            assert ended(service, batch).quarantine.rows == 3  # type: ignore[union-attr]
            service.client.retry(batch.id)
            assert service.plan()
            AnsweringWorker(service).work()
            assert service.assemble()

    monkeypatch.setattr(LocalTree, "publish", late)
    assert service.assemble()
    manifest = service.client.list().data[0].manifest
    assert manifest is not None
    assert manifest.generation == 2
    _check_whole(service, manifest, rows=0)


def test_a_quarantine_that_somebody_else_made_meanwhile_is_not_touched_and_holds_the_target_back(
    service: RunningService,
) -> None:
    batch = asked(service, key="k")
    (service.data_root / "bad.parquet").write_bytes(b"somebody's")
    assert service.assemble()
    assert (service.data_root / "bad.parquet").read_bytes() == b"somebody's"
    assert not (service.data_root / "target.parquet").exists()
    assert "bad.parquet exists, and is not as a batch" in waits_for(service, batch)
    assert "Nothing was submitted" not in waits_for(service, batch)
    (service.data_root / "bad.parquet").unlink()
    eventually(service.assemble)
    assert service.client.get(batch.id).status == "completed"


def test_a_quarantine_that_appears_in_the_last_moment_is_not_touched(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = asked(service, key="k")
    publish = LocalTree.publish

    def slower(tree: LocalTree, path: Path, uri: str, **named: Any) -> None:
        if uri.endswith("bad.parquet"):
            Path(uri).write_bytes(b"somebody's")
        publish(tree, path, uri, **named)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTree, "publish", slower)
        assert service.assemble()
    assert (service.data_root / "bad.parquet").read_bytes() == b"somebody's"
    assert "bad.parquet was written by somebody else while the batch ran" in waits_for(service, batch)
    service.client.cancel(batch.id)
    for _ in range(duties.CANCELLED_TRIES + 1):
        assert service.assemble()
    assert service.client.get(batch.id).status == "cancelling"  # its target stands, and needs its manifest
    (service.data_root / "bad.parquet").unlink()
    _check_whole(service, ended(service, batch), rows=3)


def test_a_cancelled_batch_ends_without_a_target_where_its_quarantine_was_taken_before(
    service: RunningService,
) -> None:
    batch = asked(service, key="k")
    (service.data_root / "bad.parquet").write_bytes(b"somebody's")
    service.client.cancel(batch.id)
    for _ in range(duties.CANCELLED_TRIES):
        assert service.assemble()
    assert service.client.get(batch.id).status == "cancelled"
    assert "No target was written: Quarantine" in waits_for(service, batch)
    assert not (service.data_root / "target.parquet").exists()


def test_a_quarantine_whose_folder_became_a_link_out_of_the_data_root_is_not_written(
    service: RunningService, tmp_path: Path
) -> None:
    batch = asked(service, quarantine="folder/bad.parquet")
    outside = tmp_path / "outside"
    outside.mkdir()
    (service.data_root / "folder").symlink_to(outside)
    assert service.assemble()
    assert list(outside.iterdir()) == []
    assert "lies outside the data root" in waits_for(service, batch)


def _dies_after(service: RunningService, monkeypatch: pytest.MonkeyPatch, effects: int) -> list[str]:
    """Lets the assembler be killed right after so many files have appeared; gives their names."""
    publish, published = LocalTree.publish, []

    def dies(tree: LocalTree, path: Path, uri: str, **named: Any) -> None:
        publish(tree, path, uri, **named)
        published.append(Path(uri).name)
        if len(published) == effects:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LocalTree, "publish", dies)
        with pytest.raises(Killed):
            service.assemble()
    _overtaken(service)
    return published


def _check_whole(service: RunningService, manifest: Manifest, *, rows: int) -> None:
    """All three stand, of one and the same batch."""
    file, quarantine = manifest.files[0], manifest.quarantine
    assert quarantine is not None
    for listed in (file, quarantine):
        assert hashlib.sha256(Path(listed.uri).read_bytes()).hexdigest() == listed.sha256
    noted = Path(f"{manifest.folder}/_manifest.json" if manifest.folder else f"{file.uri}.manifest.json")
    assert Manifest.model_validate_json(noted.read_bytes()) == manifest
    assert (file.rows, quarantine.rows) == (10, rows)
    assert len(read(Path(quarantine.uri))[1]) == rows
    assert not list(service.data_root.rglob(".*"))
