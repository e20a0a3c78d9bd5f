"""Tables and the service's own bytes on S3: a real protocol server, the real child processes, no local data root."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import free_port

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import duties
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.storage import s3_tree
from airflow_batch_llm.storage.s3_client import client
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Manifest, Message
from tests.conftest import RunningService, running_service
from tests.s3_server import Bucket, s3, s3_server
from tests.service.answering import AnsweringWorker, answer_all

__all__ = ["s3", "s3_server"]


@pytest.fixture
def on_s3(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    settings = ServiceSettings(
        home=tmp_path / "home",
        data_roots=(),
        data_prefixes=(s3.uri("lake"),),
        storage_url=s3.uri("own/bytes"),
        port=free_port(),
    )
    state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as running:
        yield running


def put(bucket: Bucket, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    client().put_object(Bucket=bucket.name, Key=key, Body=buffer.getvalue())


def get(bucket: Bucket, key: str) -> bytes:
    return bytes(client().get_object(Bucket=bucket.name, Key=key)["Body"].read())


def keys(bucket: Bucket, prefix: str) -> list[str]:
    return [found["Key"] for found in client().list_objects_v2(Bucket=bucket.name, Prefix=prefix).get("Contents", [])]


def submit(service: RunningService, source: str, target: str, **options: Any) -> Batch:
    spec = DatasetSpec(source=source, target=target, messages=[Message(role="user", content="{text}")], **options)
    return service.client.submit(BatchCreate(dataset=spec, model="m"))


def test_a_table_on_s3_becomes_a_table_on_s3(on_s3: RunningService, s3: Bucket, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(1_000)]
    put(s3, "lake/in.parquet", pa.table({"text": texts, "n": [[i] for i in range(1_000)]}))
    batch = submit(on_s3, s3.uri("lake/in.parquet"), s3.uri("lake/out/labels.parquet"))
    rows = answer_all(on_s3, batch)
    assert [row["llm_output"] for row in rows] == [f"answer {i}" for i in range(1_000)]
    target = pq.read_table(io.BytesIO(get(s3, "lake/out/labels.parquet")))
    assert target["text"].to_pylist() == texts
    manifest = Manifest.model_validate_json(get(s3, "lake/out/labels.parquet.manifest.json"))
    assert (manifest.batch_id, manifest.files[0].uri) == (batch.id, s3.uri("lake/out/labels.parquet"))
    assert keys(s3, "own/bytes/batches/")
    assert not (tmp_path / "home" / "storage").exists()
    assert sorted(keys(s3, "lake/")) == [
        "lake/in.parquet",
        "lake/out/labels.parquet",
        "lake/out/labels.parquet.manifest.json",
    ]


def test_a_quarantine_goes_to_s3_beside_a_target_in_a_directory(
    on_s3: RunningService, s3: Bucket, tmp_path: Path
) -> None:
    put(s3, "lake/in.parquet", pa.table({"text": [f"text {i}" for i in range(10)]}))
    (tmp_path / "data").mkdir()
    settings = dataclasses.replace(on_s3.settings, data_roots=(tmp_path / "data",), port=free_port())
    with running_service(ServiceState.open(settings), on_s3.token) as both:
        batch = submit(both, s3.uri("lake/in.parquet"), "out.parquet", quarantine=s3.uri("lake/bad/rows.parquet"))
        assert both.plan()
        AnsweringWorker(both, failing={3}).work()
        assert both.assemble()
        manifest = both.client.get(batch.id).manifest
    assert manifest is not None
    assert manifest.quarantine is not None
    assert manifest.quarantine.uri == s3.uri("lake/bad/rows.parquet")
    copies = pq.read_table(io.BytesIO(get(s3, "lake/bad/rows.parquet")))
    assert copies.equals(pq.read_table(tmp_path / "data" / "out.parquet").slice(3, 1))


def test_partitions_on_s3_stay_partitions(on_s3: RunningService, s3: Bucket) -> None:
    for day in ("01", "02"):
        put(s3, f"lake/in/ds=2026-01-{day}/part 1+ä.parquet", pa.table({"text": [day]}))
    batch = submit(on_s3, s3.uri("lake/in/"), s3.uri("lake/out/"), format="jsonl", compression="gzip")
    answer_all(on_s3, batch)
    names = [f"lake/out/ds=2026-01-{day}/part 1+ä-{batch.id}.jsonl.gz" for day in ("01", "02")]
    assert sorted(keys(s3, "lake/out/")) == ["lake/out/_manifest.json", *names]
    patterned = submit(on_s3, s3.uri("lake/in/*/*.parquet"), s3.uri("lake/one.csv"))
    rows = answer_all(on_s3, patterned)
    assert [row["text"] for row in rows] == ["01", "02"]


def test_a_target_that_somebody_else_made_meanwhile_is_not_touched(on_s3: RunningService, s3: Bucket) -> None:
    put(s3, "lake/in.parquet", pa.table({"text": ["a"]}))
    batch = submit(on_s3, s3.uri("lake/in.parquet"), s3.uri("lake/out.parquet"))
    on_s3.plan()
    AnsweringWorker(on_s3).work()
    client().put_object(Bucket=s3.name, Key="lake/out.parquet", Body=b"theirs")
    on_s3.assemble()
    held = on_s3.client.get(batch.id)
    assert held.status == "finalizing"
    assert "out.parquet exists" in (held.progress.waiting_for or "")
    assert get(s3, "lake/out.parquet") == b"theirs"


@pytest.mark.parametrize("what", ["out.parquet", "out.parquet.manifest.json"])
def test_an_upload_that_takes_longer_than_a_lease_replaces_nothing_of_a_later_generation(
    on_s3: RunningService, s3: Bucket, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    put(s3, "lake/in.parquet", pa.table({"text": [f"t{row}" for row in range(10)]}))
    first = submit(on_s3, s3.uri("lake/in.parquet"), s3.uri("lake/out.parquet"))
    assert on_s3.plan()
    AnsweringWorker(on_s3, failing={1, 2}).work()
    assert on_s3.assemble()
    second = on_s3.client.retry(first.id)
    assert on_s3.plan()
    AnsweringWorker(on_s3, failing={1}).work()
    upload, last = s3_tree.upload_over, []

    def slow(path: Path, bucket: str, key: str, **named: Any) -> None:
        if key.endswith(f"/{what}"):
            monkeypatch.setattr(s3_tree, "upload_over", upload)
            for holder in on_s3.state.duties.holders():
                on_s3.state.duties.free_those_of(holder)
            assert on_s3.assemble()
            last.append(on_s3.client.retry(second.id))
            answer_all(on_s3, last[0])
        upload(path, bucket, key, **named)

    monkeypatch.setattr(s3_tree, "upload_over", slow)
    assert on_s3.assemble()
    third = on_s3.client.get(last[0].id)
    assert (third.status, third.generation, third.request_counts.failed) == ("completed", 3, 0)
    assert pq.read_table(io.BytesIO(get(s3, "lake/out.parquet")))["llm_status"].to_pylist() == ["success"] * 10
    assert Manifest.model_validate_json(get(s3, "lake/out.parquet.manifest.json")) == third.manifest


def test_a_source_that_changes_while_it_is_planned_is_not_run(on_s3: RunningService, s3: Bucket) -> None:
    put(s3, "lake/in.parquet", pa.table({"text": ["a"]}))
    batch = submit(on_s3, s3.uri("lake/in.parquet"), s3.uri("lake/out.parquet"))
    put(s3, "lake/in.parquet", pa.table({"text": ["b"]}))
    on_s3.plan()
    errors = on_s3.client.get(batch.id).errors
    assert errors is not None
    assert errors.data[0].code == "source_changed"


def test_storage_that_is_away_holds_a_batch_up_and_loses_nothing(
    on_s3: RunningService, s3: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.5)
    put(s3, "lake/in.parquet", pa.table({"text": ["a"]}))
    batch = submit(on_s3, s3.uri("lake/in.parquet"), s3.uri("lake/out.parquet"))
    with s3.server.failing("503 Service Unavailable", "SlowDown"):
        on_s3.plan()
    waiting = on_s3.client.get(batch.id)
    assert waiting.status == "validating"
    assert "is tried again" in (waiting.progress.waiting_for or "")
    deadline = time.monotonic() + 30
    while not on_s3.plan() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [row["llm_status"] for row in answer_all(on_s3, batch)] == ["success"]


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("s3://{bucket}/elsewhere/in.parquet", "s3://{bucket}/lake/o.parquet", "place_not_allowed"),
        ("s3://{bucket}/lakeside/in.parquet", "s3://{bucket}/lake/o.parquet", "place_not_allowed"),
        ("s3://{bucket}/lake/../own/x.parquet", "s3://{bucket}/lake/o.parquet", "place_not_supported"),
        ("s3://other-bucket/lake/in.parquet", "s3://{bucket}/lake/o.parquet", "place_not_allowed"),
        ("s3://{bucket}/lake/in.parquet", "s3://{bucket}/own/bytes/o.parquet", "place_not_allowed"),
        ("s3://{bucket}/lake/in.parquet", "o.parquet", "place_not_allowed"),
        ("s3://{bucket}/lake/none.parquet", "s3://{bucket}/lake/o.parquet", "source_not_found"),
        ("s3://{bucket}/lake//in.parquet", "s3://{bucket}/lake/o.parquet", "place_not_supported"),
        ("s3:///lake/in.parquet", "s3://{bucket}/lake/o.parquet", "place_not_supported"),
        ("s3://{bucket}/lake/in.parquet", "s3://{bucket}/lake/in.parquet", "target_is_source"),
    ],
)
def test_a_place_outside_the_prefixes_is_refused(
    on_s3: RunningService, s3: Bucket, source: str, target: str, code: str
) -> None:
    put(s3, "lake/in.parquet", pa.table({"text": ["a"]}))
    with pytest.raises(InvalidRequestError) as caught:
        submit(on_s3, source.format(bucket=s3.name), target.format(bucket=s3.name))
    assert caught.value.code == code, caught.value.message
