"""An assembler that stood still for longer than its lease, right before one of its effects, spoils nothing after it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service import duties
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.publishing import Publisher
from airflow_batch_llm.service.table_assembler import Assembler
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.wire import Batch, Manifest
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_bad_input import submit

pytestmark = BOTH_STORES


@pytest.fixture(autouse=True)
def table(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)
    pq.write_table(pa.table({"a": list(range(10))}), service.data_root / "s.parquet")


class Killed(BaseException):
    """The process is gone."""


def overtaken(service: RunningService) -> None:
    """Ends the lease of the attempt that is at work."""
    for holder in service.state.duties.holders():
        service.state.duties.free_those_of(holder)


def cancelled_early(service: RunningService, target: str) -> Batch:
    """A batch that is to be assembled, without an answer."""
    batch = submit(service, "s.parquet", target, key="k")
    assert service.plan()
    service.client.cancel(batch.id)
    return batch


def next_generation_completes(service: RunningService, target: str) -> Batch:
    """The attempt that stands still is overtaken, its batch ends, and the next under its key completes."""
    overtaken(service)
    assert service.assemble()
    batch = submit(service, "s.parquet", target, key="k")
    answer_all(service, batch)
    assert service.client.get(batch.id).status == "completed"
    return batch


def stands(service: RunningService, batch: Batch, manifest: str) -> None:
    """What the batch has published is there as it was published."""
    shown = service.client.get(batch.id).manifest
    assert Manifest.model_validate_json((service.data_root / manifest).read_bytes()) == shown
    assert [row["llm_status"] for row in service.client.results(batch.id)] == ["success"] * 10


@pytest.mark.parametrize("before", ["the file", "the manifest"])
@pytest.mark.parametrize("target", ["target.parquet", "target/"])
def test_what_a_later_generation_has_published_is_not_replaced(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, target: str, before: str
) -> None:
    """It stands still behind its last look at the store, in the moment before its effect."""
    cancelled_early(service, target)
    publish, later = LocalTree.publish, []

    def late(self: LocalTree, path: Path, uri: str, **named: Any) -> None:
        if ("manifest" in before) == uri.endswith("manifest.json"):
            monkeypatch.setattr(LocalTree, "publish", publish)
            later.append(next_generation_completes(service, target))
        publish(self, path, uri, **named)

    monkeypatch.setattr(LocalTree, "publish", late)
    assert service.assemble()
    stands(service, later[0], "target/_manifest.json" if target.endswith("/") else "target.parquet.manifest.json")


def test_the_files_of_a_later_generation_stay_in_their_folder(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still behind its manifest, before it looks which files of others are to go."""
    cancelled_early(service, "target/")
    old, later = Publisher._old, []

    def late(self: Publisher) -> set[str]:
        monkeypatch.setattr(Publisher, "_old", old)
        later.append(next_generation_completes(service, "target/"))
        return old(self)

    monkeypatch.setattr(Publisher, "_old", late)
    assert service.assemble()
    stands(service, later[0], "target/_manifest.json")


def test_no_half_of_what_the_next_attempt_is_writing_is_published(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt is killed after that, and the one after it must not take the half for somebody else's."""
    batch = submit(service, "s.parquet")
    assert service.plan()
    AnsweringWorker(service).work()
    publish, assemble = LocalTree.publish, Assembler.assemble
    half, woken = threading.Event(), threading.Event()

    def killed_in_the_middle(self: Assembler, numbers: Any, path: Path, form: Any) -> int:
        path.write_bytes(b"the first half of it")
        half.set()
        assert woken.wait(20)
        raise Killed

    def next_attempt() -> None:
        with pytest.raises(Killed):
            runner(DutyKind.ASSEMBLE, service.settings).run_once()

    def late(self: LocalTree, path: Path, uri: str, **named: Any) -> None:
        monkeypatch.setattr(LocalTree, "publish", publish)
        monkeypatch.setattr(Assembler, "assemble", killed_in_the_middle)
        overtaken(service)
        other = threading.Thread(target=next_attempt)
        other.start()
        assert half.wait(20)
        try:
            publish(self, path, uri, **named)
        finally:
            monkeypatch.setattr(Assembler, "assemble", assemble)
            woken.set()
            other.join()

    monkeypatch.setattr(LocalTree, "publish", late)
    assert service.assemble()
    assert not (service.data_root / "target.parquet").exists()
    overtaken(service)
    eventually(service.assemble)
    stands(service, batch, "target.parquet.manifest.json")
