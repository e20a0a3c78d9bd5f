"""However a batch ends: what was done is delivered, what was not is said row by row, and the end is the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service import duties
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.publishing import Publisher
from airflow_batch_llm.service.targets import read_manifest
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService, eventually
from tests.service.answering import AnsweringWorker
from tests.service.keeping import answered, submit
from tests.service.requests import create, file_of, line, openai_client

TEXTS = ["a", "b", "a", "c", "b", "d"]


def time_is_up(service: RunningService, batch_id: str) -> None:
    with service.state.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == batch_id).values(expires_at=1.0))
    service.state.life.expire_due()


def cancelled(service: RunningService, batch_id: str) -> None:
    service.client.cancel(batch_id)


ENDS: list[tuple[str, Callable[[RunningService, str], None]]] = [("expired", time_is_up), ("cancelled", cancelled)]


def partly_done(service: RunningService, rows: set[int], failing: set[int]) -> tuple[AnsweringWorker, Any]:
    """The rows with these numbers done, of the one chunk there is; and the claim, which is still held."""
    worker = AnsweringWorker(service, engine_identity="e", failing=failing)
    claim, lines = worker.claim()  # type: ignore[misc]
    worker.link.extend(claim, [worker.store(claim, 0, [one for one in lines if one.row in rows])])
    return worker, claim


@pytest.mark.parametrize(("status", "end"), ENDS)
@pytest.mark.parametrize("limit", [{"completion_window": "1h"}, {"deadline": int(time.time()) + 3_600}, {}])
def test_a_table_that_is_ended_in_the_middle_says_of_each_row_what_became_of_it(
    service: RunningService, status: str, end: Callable[[RunningService, str], None], limit: dict[str, Any]
) -> None:
    AnsweringWorker(service, engine_identity="e")
    batch = submit(service, TEXTS, **limit)
    assert (batch.progress.rows_total, batch.progress.rows_duplicate) == (6, 2)
    worker, claim = partly_done(service, {0, 1}, {1})
    end(service, batch.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    batch = service.client.get(batch.id)
    assert batch.status == status
    target = pq.read_table(service.data_root / "s-out.parquet").to_pylist()
    assert [row["text"] for row in target] == TEXTS
    assert [row["llm_status"] for row in target] == ["success", "error", "success", status, "error", status]
    assert [row["llm_output"] for row in target] == ["answer 0", None, "answer 0", None, None, None]
    said = f"batch_{status}: The batch was {status} before this row was done."
    assert [row["llm_error"] for row in target if row["llm_status"] == status] == [said] * 2
    assert list(service.client.results(batch.id)) == target
    assert batch.manifest is not None
    assert batch.manifest.counts == {"success": 2, "error": 2, status: 2}
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 2, "failed": 2}
    assert batch.progress.rows_done == 4


@pytest.mark.parametrize(("status", "end"), ENDS)
def test_a_request_file_that_is_ended_in_the_middle_says_of_each_row_what_became_of_it(
    service: RunningService, status: str, end: Callable[[RunningService, str], None]
) -> None:
    with openai_client(service) as client:
        batch_id = create(client, file_of(line(number) for number in range(6))).id
    assert service.plan()
    worker, claim = partly_done(service, {0, 1, 2}, {1})
    end(service, batch_id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    batch = service.client.get(batch_id)
    rows = list(service.client.results(batch_id))
    assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(6)]
    assert [bool(row["response"]) for row in rows] == [True] * 3 + [False] * 3
    assert {row["error"]["code"] for row in rows[3:]} == {f"batch_{status}"}
    assert (batch.status, batch.request_counts.model_dump()) == (status, {"total": 6, "completed": 2, "failed": 1})


def test_a_table_whose_copies_of_failed_rows_outnumber_the_rest_has_counts_that_add_up(service: RunningService) -> None:
    AnsweringWorker(service, engine_identity="e")
    batch = submit(service, ["bad", "bad", "bad", "bad", "good"])
    worker, claim = partly_done(service, {0}, {0})
    service.client.cancel(batch.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    batch = service.client.get(batch.id)
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 0, "failed": 4}


def failed(service: RunningService) -> str:
    batch = submit(service, plan=False)
    (service.data_root / "s.parquet").unlink()
    assert service.plan()
    return batch.id


def completed(service: RunningService) -> str:
    return answered(service, submit(service)).id


def ended_by(end: Callable[[RunningService, str], None]) -> Callable[[RunningService], str]:
    def made(service: RunningService) -> str:
        batch = submit(service)
        worker, claim = partly_done(service, {0}, set())
        end(service, batch.id)
        worker.link.release(claim, [], outcome="stopped")
        assert service.assemble()
        return batch.id

    return made


def unplanned(service: RunningService) -> str:
    batch = submit(service, plan=False)
    service.client.cancel(batch.id)
    return batch.id


@pytest.mark.parametrize(
    ("status", "made"),
    [
        ("completed", completed),
        ("failed", failed),
        ("expired", ended_by(time_is_up)),
        ("cancelled", ended_by(cancelled)),
        ("cancelled", unplanned),
    ],
)
def test_a_batch_that_has_ended_never_changes_again(
    service: RunningService, status: str, made: Callable[[RunningService], str]
) -> None:
    batch_id = made(service)
    ended = service.client.get(batch_id)
    assert ended.status == status
    written = sorted((path.name, path.read_bytes()) for path in service.data_root.iterdir())
    stored = list(service.state.storage.list(f"batches/{batch_id}"))
    assert service.client.cancel(batch_id).status == status
    time_is_up(service, batch_id)
    service.state.life.settle_ending()
    assert AnsweringWorker(service).claim() is None
    assert not service.plan()
    assert not service.assemble()
    now = service.client.get(batch_id)
    assert now.model_copy(update={"expires_at": None}) == ended.model_copy(update={"expires_at": None})
    assert sorted((path.name, path.read_bytes()) for path in service.data_root.iterdir()) == written
    assert list(service.state.storage.list(f"batches/{batch_id}")) == stored


@pytest.mark.parametrize("seam", ["publish", "publish_manifest"])
@pytest.mark.parametrize("folder", [False, True])
def test_an_assembler_that_slept_until_a_later_generation_had_published_writes_nothing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, seam: str, folder: bool
) -> None:
    """Its duty was handed on, the batch ended with a failed row, and its retry has mended that row."""
    first = whole(service, folder=folder, key="k")
    AnsweringWorker(service, failing={1}).work()
    original = getattr(Publisher, seam)

    def asleep(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Publisher, seam, original)
        for holder in service.state.duties.holders():
            service.state.duties.free_those_of(holder)
        assert service.assemble()
        assert service.client.get(first.id).status == "completed"
        again = service.client.retry(first.id)
        assert service.plan()
        AnsweringWorker(service).work()
        assert service.assemble()
        assert service.client.get(again.id).request_counts.failed == 0
        standing.append((again.id, contents(service)))
        return original(*arguments, **named)

    standing: list[tuple[str, Any]] = []
    monkeypatch.setattr(Publisher, seam, asleep)
    assert service.assemble()
    assert contents(service) == standing[0][1]
    assert manifest_id(service, folder=folder) == standing[0][0]


def test_an_attempt_that_lost_its_duty_publishes_nothing_while_the_next_one_is_at_it(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(service)
    AnsweringWorker(service).work()
    original = Publisher.publish

    def overtaken(*arguments: Any, **named: Any) -> Any:
        for holder in service.state.duties.holders():
            service.state.duties.free_those_of(holder)
        assert service.state.duties.claim(DutyKind.ASSEMBLE, holder="another", lease_seconds=60)
        return original(*arguments, **named)

    monkeypatch.setattr(Publisher, "publish", overtaken)
    assert service.assemble()
    assert set(contents(service)) == {"s.parquet"}


def test_a_batch_whose_successor_has_published_meanwhile_writes_nothing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor is of the same series, under a key of its own, so it does not wait."""
    older = whole(service, key="k/1", series="s")
    AnsweringWorker(service).work()
    original = Publisher.publish

    def overtaken(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Publisher, "publish", original)
        newer = whole(service, key="k/2", series="s")
        AnsweringWorker(service).work()
        assert service.assemble()
        assert service.client.get(newer.id).status == "completed"
        standing.append((newer.id, contents(service)))
        return original(*arguments, **named)

    standing: list[tuple[str, Any]] = []
    monkeypatch.setattr(Publisher, "publish", overtaken)
    assert service.assemble()
    eventually(service.assemble)
    ended = service.client.get(older.id)
    assert (ended.status, ended.manifest) == ("cancelled", None)
    assert contents(service) == standing[0][1]
    assert manifest_id(service) == standing[0][0]


def test_a_target_that_its_batch_had_begun_to_publish_gets_its_manifest_and_the_successor_replaces_both(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = whole(service, key="k/1", series="s")
    AnsweringWorker(service, failing={1}).work()
    original = LocalTree.publish
    newer: list[Batch] = []

    def overtaken(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(LocalTree, "publish", original)
        newer.append(whole(service, key="k/2", series="s"))
        AnsweringWorker(service).work()
        return original(*arguments, **named)

    monkeypatch.setattr(LocalTree, "publish", overtaken)
    for _ in range(3):
        eventually(service.assemble)
    assert service.client.get(older.id).status == "cancelled"
    assert service.client.get(newer[0].id).status == "completed"
    assert manifest_id(service) == newer[0].id
    assert pq.read_table(service.data_root / "out.parquet")["llm_status"].to_pylist() == ["success"] * 3


def test_an_assembler_that_dies_between_the_files_of_a_folder_and_their_manifest_is_followed_by_one_that_ends_it(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AssemblerCrash(BaseException):
        pass

    def dying(*_: Any, **__: Any) -> Any:
        raise AssemblerCrash

    batch = whole(service, folder=True)
    AnsweringWorker(service).work()
    with monkeypatch.context() as patch, pytest.raises(AssemblerCrash):
        patch.setattr(Publisher, "publish_manifest", dying)
        service.assemble()
    for holder in service.state.duties.holders():
        service.state.duties.free_those_of(holder)
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert (ended.status, ended.progress.waiting_for) == ("completed", None)
    assert manifest_id(service, folder=True) == batch.id


def test_a_generation_that_is_cancelled_while_it_is_assembled_lets_the_next_one_have_the_last_word(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "ENDING_SECONDS", 0.0)
    first = whole(service, key="k")
    AnsweringWorker(service, failing={1}).work()
    service.client.cancel(first.id)
    second = service.client.submit(BatchCreate(dataset=first.dataset, model="m", key="k"))
    assert second.generation == 2
    assert runner(DutyKind.PLAN, service.settings).run_once()
    assert service.client.get(second.id).status == "validating"
    eventually(service.assemble)
    assert service.client.get(first.id).status == "cancelled"
    eventually(service.plan)
    answered(service, second)
    assert manifest_id(service) == second.id
    assert service.client.get(second.id).request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}


def whole(service: RunningService, *, folder: bool = False, **more: Any) -> Batch:
    """A planned batch of three rows that equal none; into a folder, or a file."""
    if not (service.data_root / "s.parquet").exists():
        submit(service, plan=False)
        service.client.cancel(service.client.list().data[0].id)
    target = "out/" if folder else "out.parquet"
    messages = [Message(role="user", content="{text}")]
    spec = DatasetSpec(source="s.parquet", target=target, messages=messages)
    batch = service.client.submit(BatchCreate(dataset=spec, model="m", reuse="never", **more))
    assert service.plan()
    return batch


def contents(service: RunningService) -> dict[str, bytes]:
    """Everything below the data root that readers see, by name."""
    files = (path for path in service.data_root.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(service.data_root)): path.read_bytes() for path in files}


def manifest_id(service: RunningService, *, folder: bool = False) -> str:
    name = "out/_manifest.json" if folder else "out.parquet.manifest.json"
    manifest = read_manifest(LocalTree(), str(service.data_root / name))
    assert manifest is not None
    return manifest.batch_id
