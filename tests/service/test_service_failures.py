"""What a manifest says of the rows that failed: their codes, with counts that add up."""

from __future__ import annotations

from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker


def test_a_manifest_counts_the_rows_that_are_no_success_by_their_code(service: RunningService) -> None:
    lines = ['{"text": "a"}', "no JSON", '{"text": "b"}', '{"text": "c"}', '{"text": "d"}']
    (service.data_root / "s.jsonl").write_text("\n".join(lines))
    spec = DatasetSpec(source="s.jsonl", target="t.parquet", messages=[Message(role="user", content="{text}")])
    batch = service.client.submit(BatchCreate(dataset=spec, model="m"))
    assert service.plan()
    worker = AnsweringWorker(service, failing={0, 4})
    claimed = worker.claim()
    assert claimed is not None
    claim, asked = claimed
    service.client.cancel(batch.id)
    done = [line for line in asked if line.row != 3]
    worker.link.release(claim, [worker.store(claim, 0, done)], outcome="stopped")
    assert service.assemble()
    manifest = service.client.get(batch.id).manifest
    assert manifest is not None
    assert manifest.failures == {"engine_refused": 2, "invalid_json_line": 1, "batch_cancelled": 1}
    assert sum(manifest.failures.values()) == manifest.rows - manifest.counts["success"]


def test_a_manifest_without_failures_says_none(service: RunningService) -> None:
    (service.data_root / "s.jsonl").write_text('{"text": "a"}')
    spec = DatasetSpec(source="s.jsonl", target="t.jsonl", messages=[Message(role="user", content="{text}")])
    batch = service.client.submit(BatchCreate(dataset=spec, model="m"))
    service.plan()
    AnsweringWorker(service).work()
    service.assemble()
    manifest = service.client.get(batch.id).manifest
    assert manifest is not None
    assert (manifest.counts, manifest.failures) == ({"success": 1}, {})
