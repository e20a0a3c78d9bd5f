"""Planning and assembling when things go wrong: whatever it is, its batch says so and the others go on."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service import duties, supervisor, table_duties
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.publishing import Publisher
from airflow_batch_llm.service.table_assembler import Assembler
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.wire import Batch, Manifest
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker, answer_all
from tests.service.test_service_bad_input import submit, write_damaged
from tests.service.test_service_ends import time_is_up

pytestmark = BOTH_STORES


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)


@pytest.fixture
def table(service: RunningService) -> Path:
    path = service.data_root / "s.parquet"
    pq.write_table(pa.table({"a": list(range(10))}), path)
    return path


def answered(service: RunningService, **spec: Any) -> Batch:
    """A batch of which all rows are done and nothing is assembled."""
    batch = submit(service, "s.parquet", **spec)
    assert service.plan()
    AnsweringWorker(service).work()
    assert service.client.get(batch.id).status == "finalizing"
    return batch


def waits_for(service: RunningService, batch: Batch) -> str:
    return service.client.get(batch.id).progress.waiting_for or ""


@pytest.mark.usefixtures("table")
def test_a_batch_that_was_cancelled_before_its_plan_is_never_planned_and_the_next_one_is(
    service: RunningService,
) -> None:
    cancelled = submit(service, "s.parquet")
    assert service.client.cancel(cancelled.id).status == "cancelled"
    assert not service.plan()
    assert len(answer_all(service, submit(service, "s.parquet"))) == 10


@pytest.mark.usefixtures("table")
def test_a_cancel_while_the_plan_is_made_leaves_no_duty(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet")
    checked = table_duties._check_unchanged

    def cancelled_meanwhile(*arguments: Any) -> None:
        checked(*arguments)
        service.client.cancel(batch.id)

    monkeypatch.setattr(table_duties, "_check_unchanged", cancelled_meanwhile)
    assert service.plan()
    assert service.client.get(batch.id).status == "cancelled"
    assert AnsweringWorker(service).claim() is None
    assert not service.plan()


@pytest.mark.usefixtures("table")
def test_a_cancel_while_the_target_is_written_ends_as_cancelled_with_every_row(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answered(service)
    with monkeypatch.context() as patch:
        publish = LocalTree.publish

        def cancelled_meanwhile(*arguments: Any, **named: Any) -> None:
            publish(*arguments, **named)
            service.client.cancel(batch.id)

        patch.setattr(LocalTree, "publish", cancelled_meanwhile)
        assert service.assemble()
        assert service.client.get(batch.id).status == "cancelling"
    eventually(service.assemble)
    ended = service.client.get(batch.id)
    assert ended.manifest is not None
    assert (ended.status, ended.manifest.status, ended.manifest.counts) == ("cancelled", "cancelled", {"success": 10})
    assert len(list(service.client.results(batch.id))) == 10


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("duty", ["plan", "assemble"])
def test_trouble_that_nobody_thought_of_is_said_and_holds_up_no_other_batch(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, duty: str
) -> None:
    batch = submit(service, "s.parquet") if duty == "plan" else answered(service)
    with monkeypatch.context() as patch:
        patch.setattr(duties, f"{duty}_table", _stumble)
        assert getattr(service, duty)()
    assert f"The {duty} duty met trouble and is tried again every 0 s: stumbled" in waits_for(service, batch)
    answer_all(service, batch)
    assert service.client.get(batch.id).status == "completed"
    assert service.client.get(batch.id).progress.waiting_for is None


def _stumble(*_: Any) -> None:
    raise LookupError("stumbled")


@pytest.mark.usefixtures("table")
def test_a_target_that_somebody_else_made_meanwhile_is_not_touched_and_waited_for(service: RunningService) -> None:
    batch = answered(service)
    target = service.data_root / "target.parquet"
    target.write_bytes(b"somebody's")
    assert service.assemble()
    assert target.read_bytes() == b"somebody's"
    assert "no manifest stands beside it" in waits_for(service, batch)
    assert "Nothing was submitted" not in waits_for(service, batch)
    target.unlink()
    eventually(service.assemble)
    assert service.client.get(batch.id).status == "completed"


@pytest.mark.usefixtures("table")
def test_a_target_whose_folder_became_a_link_out_of_the_data_root_is_not_written(
    service: RunningService, tmp_path: Path
) -> None:
    batch = answered(service, target="folder/t.parquet")
    outside = tmp_path / "outside"
    outside.mkdir()
    (service.data_root / "folder").symlink_to(outside)
    assert service.assemble()
    assert list(outside.iterdir()) == []
    assert "lies outside the data root" in waits_for(service, batch)
    assert service.client.get(batch.id).status == "finalizing"


@pytest.mark.usefixtures("table")
def test_a_cancelled_batch_ends_even_where_its_target_cannot_be_written(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet")
    service.plan()
    service.client.cancel(batch.id)
    monkeypatch.setattr(LocalTree, "publish", _disk_full)
    assert service.assemble()
    assert service.client.get(batch.id).status == "cancelling"
    for _ in range(duties.CANCELLED_TRIES - 1):
        eventually(service.assemble)
    assert service.client.get(batch.id).status == "cancelled"
    assert "No target was written: No space left on device" in waits_for(service, batch)


@pytest.mark.usefixtures("table")
def test_a_cancelled_batch_waits_with_its_end_until_its_published_file_has_a_manifest(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the file would be nobody's, and in the way of the batches that follow."""
    monkeypatch.setattr(duties, "RETRY_SECONDS", 0.0)
    batch = submit(service, "s.parquet")
    service.plan()
    service.client.cancel(batch.id)
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish_manifest", _disk_full)
        for _ in range(duties.CANCELLED_TRIES + 1):
            assert service.assemble()
    assert service.client.get(batch.id).status == "cancelling"
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert (ended.status, ended.manifest is not None) == ("cancelled", True)


def _disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "target.parquet")


@pytest.mark.usefixtures("table")
def test_a_full_disk_while_planning_holds_the_batch_up_and_leaves_nothing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("airflow_batch_llm.storage.local.LocalStorage.put", _disk_full)
        assert service.plan()
    assert service.client.get(batch.id).status == "validating"
    assert "No space left on device" in waits_for(service, batch)
    assert len(answer_all(service, batch)) == 10


@pytest.mark.usefixtures("table")
def test_a_superseded_batch_never_writes_over_the_target_of_its_successor(service: RunningService) -> None:
    older = submit(service, "s.parquet", key="k/1", series="s")
    service.plan()
    newer = submit(service, "s.parquet", key="k/2", series="s")
    rows = answer_all(service, newer)
    ended = service.client.get(older.id)
    assert (ended.status, ended.manifest) == ("cancelled", None)
    assert [row["llm_status"] for row in rows] == ["success"] * 10


def test_a_source_that_is_gone_when_it_is_planned_fails_its_batch(service: RunningService, table: Path) -> None:
    batch = submit(service, "s.parquet")
    table.unlink()
    assert service.plan()
    failed = service.client.get(batch.id)
    assert failed.errors is not None
    assert (failed.status, failed.errors.data[0].code) == ("failed", "source_not_found")
    assert "Nothing was submitted" not in failed.errors.data[0].message


def test_a_source_that_is_damaged_further_down_fails_its_batch_and_nothing_is_kept(service: RunningService) -> None:
    write_damaged(service.data_root / "s.parquet", good_rows=10_000)
    batch = submit(service, "s.parquet")
    assert service.plan()
    failed = service.client.get(batch.id)
    assert failed.errors is not None
    assert (failed.status, failed.errors.data[0].code) == ("failed", "source_unreadable")
    assert not list(service.settings.storage_root.rglob("*.*"))


@pytest.mark.usefixtures("table")
def test_the_lease_of_a_duty_outlives_its_first_seconds_and_a_store_that_was_away(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first extension fails; a second runner asks all the time and never gets the duty."""
    batch = submit(service, "s.parquet")
    settings = dataclasses.replace(service.settings, duty_lease_seconds=0.3)
    planner = runner(DutyKind.PLAN, settings)
    extend, extended = planner.context.duties.extend, []

    def shaky(*arguments: Any, **named: Any) -> None:
        extended.append(1)
        if len(extended) == 1:
            raise StoreTroubleError("The store cannot be used: away.")
        extend(*arguments, **named)

    def slow(*_: Any) -> None:
        eventually(lambda: service.state.duties.due(DutyKind.PLAN) or len(extended) > 5, what="the lease or its end")
        assert not service.state.duties.due(DutyKind.PLAN)

    monkeypatch.setattr(planner.context.duties, "extend", shaky)
    monkeypatch.setattr(table_duties, "_check_unchanged", slow)
    assert planner.run_once()
    assert service.client.get(batch.id).status == "in_progress"


@pytest.mark.usefixtures("table")
def test_an_attempt_that_lost_its_duty_changes_nothing_when_it_wakes_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answered(service)
    assemble = Assembler.assemble

    def overtaken(*arguments: Any) -> None:
        assemble(*arguments)
        monkeypatch.setattr(Assembler, "assemble", assemble)
        for holder in service.state.duties.holders():
            service.state.duties.free_those_of(holder)
        assert service.assemble()

    monkeypatch.setattr(Assembler, "assemble", overtaken)
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert (ended.status, ended.progress.waiting_for) == ("completed", None)
    assert not service.assemble()
    assert pq.read_table(service.data_root / "target.parquet").num_rows == 10


def test_a_store_that_is_away_when_a_duty_process_dies_does_not_keep_it_from_starting_again(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(holder: str, *, lost: bool) -> None:
        raise StoreTroubleError("The store cannot be used: database is locked.")

    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.0)
    keeper = supervisor.Supervisor(service.settings, service.state.duties, service.state.life, service.state.watching)
    monkeypatch.setattr(service.state.duties, "free_those_of", away)
    keeper.start()
    try:
        first = eventually(lambda: keeper._children.get(DutyKind.PLAN), what="the planner starts")
        first.kill()
        eventually(lambda: keeper._children[DutyKind.PLAN].pid != first.pid, what="it starts again")
    finally:
        keeper.stop()


@pytest.mark.parametrize("trouble", ["it is killed before it has its settings", "there is no memory for it"])
def test_a_duty_process_that_does_not_come_up_is_started_again(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    start_child, started = supervisor.start_child, []

    def stumbling(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(command)
        if len(started) > 2:
            return start_child(command, **options)
        if "memory" in trouble:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        child = start_child(["true"], **options)
        child.wait()
        return child

    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "start_child", stumbling)
    keeper = supervisor.Supervisor(service.settings, service.state.duties, service.state.life, service.state.watching)
    keeper.start()
    try:
        eventually(lambda: len(started) >= 4 and all(child.poll() is None for child in keeper._children.values()))
    finally:
        keeper.stop()
    assert all(child.poll() is not None for child in keeper._children.values())


def test_a_stop_ends_a_duty_process_that_is_being_started(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_child, begun = supervisor.start_child, threading.Event()

    def slow(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        begun.set()
        time.sleep(0.1)
        return start_child(command, **options)

    monkeypatch.setattr(supervisor, "start_child", slow)
    keeper = supervisor.Supervisor(service.settings, service.state.duties, service.state.life, service.state.watching)
    keeper.start()
    assert begun.wait(10)
    keeper.stop()
    assert keeper._children
    assert all(child.poll() is not None for child in keeper._children.values())


def _overtaken(service: RunningService) -> None:
    """Ends the lease of the attempt that is at work, as if its process had stood still for too long."""
    for holder in service.state.duties.holders():
        service.state.duties.free_those_of(holder)


def test_a_planner_that_wakes_up_late_takes_nothing_from_the_plan_that_became_real(
    service: RunningService, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet")
    checked = table_duties._check_unchanged

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(table_duties, "_check_unchanged", checked)
        _overtaken(service)
        assert service.plan()
        assert service.client.get(batch.id).status == "in_progress"
        pq.write_table(pa.table({"a": list(range(20))}), table)  # so that the late one finds its source changed
        checked(*arguments)

    monkeypatch.setattr(table_duties, "_check_unchanged", late)
    assert service.plan()
    assert service.client.get(batch.id).status == "in_progress"
    AnsweringWorker(service).work()
    assert service.assemble()
    assert pq.read_table(service.data_root / "target.parquet").num_rows == 10


@pytest.mark.usefixtures("table")
def test_an_assembler_that_wakes_up_late_leaves_the_target_of_a_newer_batch_alone(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submit(service, "s.parquet", key="k")
    assert service.plan()
    service.client.cancel(first.id)
    assemble = Assembler.assemble

    def late(*arguments: Any) -> int:
        rows = assemble(*arguments)
        monkeypatch.setattr(Assembler, "assemble", assemble)
        _overtaken(service)
        assert service.assemble()
        answer_all(service, submit(service, "s.parquet", key="k"))
        return rows

    monkeypatch.setattr(Assembler, "assemble", late)
    assert service.assemble()
    second = service.client.list().data[0]
    assert (second.status, second.generation) == ("completed", 2)
    assert [row["llm_status"] for row in service.client.results(second.id)] == ["success"] * 10


@pytest.mark.usefixtures("table")
def test_a_batch_is_found_under_its_key_while_its_target_stands_and_its_manifest_not_yet(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet", key="k")
    publish = LocalTree.publish
    found: list[str] = []

    def asked_again(tree: LocalTree, path: Path, uri: str, **named: Any) -> None:
        publish(tree, path, uri, **named)
        found.append(submit(service, "s.parquet", key="k").id)

    monkeypatch.setattr(LocalTree, "publish", asked_again)
    answer_all(service, batch)
    assert found == [batch.id, batch.id]


class Killed(BaseException):
    """The process was killed."""


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("target", ["target.parquet", "target/"])
def test_a_cancelled_batch_whose_assembler_died_over_its_target_is_not_in_the_way_of_the_next(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    first = submit(service, "s.parquet", target, key="k")
    assert service.plan()
    service.client.cancel(first.id)
    second = submit(service, "s.parquet", target, key="k")
    _dies_over_its_target(service, monkeypatch)
    assert service.client.cancel(second.id).status == "cancelled"
    second = submit(service, "s.parquet", target, key="k")
    assert service.assemble()
    answer_all(service, second)
    assert service.client.get(second.id).status == "completed"
    assert [row["llm_status"] for row in service.client.results(second.id)] == ["success"] * 10


def _dies_over_its_target(service: RunningService, monkeypatch: pytest.MonkeyPatch, effects: int = 1) -> None:
    """The first file of the target stands, and its manifest does not; or does, with a second of the effects."""
    with monkeypatch.context() as patch:
        publish, published = LocalTree.publish, []

        def dies(*arguments: Any, **named: Any) -> None:
            publish(*arguments, **named)
            published.append(arguments)
            if len(published) == effects:
                raise Killed

        patch.setattr(LocalTree, "publish", dies)
        with pytest.raises(Killed):
            service.assemble()
    _overtaken(service)


@pytest.mark.usefixtures("table")
def test_a_file_that_was_published_for_a_batch_is_its_own_though_what_it_is_to_be_now_is_another(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(service, "s.parquet", key="k")
    assert service.plan()
    time_is_up(service, batch.id)
    _dies_over_its_target(service, monkeypatch)
    assert pq.read_table(service.data_root / "target.parquet")["llm_status"].to_pylist() == ["expired"] * 10
    assert service.client.cancel(batch.id).status == "cancelling"
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert (ended.status, ended.progress.waiting_for) == ("cancelled", None)
    assert ended.manifest is not None
    assert pq.read_table(service.data_root / "target.parquet")["llm_status"].to_pylist() == ["cancelled"] * 10


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("dead", ["between file and manifest", "behind the manifest"])
def test_a_batch_that_is_superseded_over_its_target_leaves_it_whole_before_the_next_one_writes(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, dead: str
) -> None:
    """Else the file of one batch stood beside the manifest of another, for as long as the next one takes."""
    monkeypatch.setattr(table_duties, "ENDING_SECONDS", 0.0)
    answer_all(service, submit(service, "s.parquet", key="k0", series="s"))
    half = submit(service, "s.parquet", key="k1", series="s", passthrough=[])
    assert service.plan()
    AnsweringWorker(service).work()
    _dies_over_its_target(service, monkeypatch, effects=1 if "between" in dead else 2)
    newest = submit(service, "s.parquet", key="k2", series="s")
    assert service.client.get(half.id).status == "cancelling"
    assert service.plan()
    AnsweringWorker(service).work()
    held = service.state.duties.claim(DutyKind.ASSEMBLE, holder="somebody/1", lease_seconds=60.0)
    assert held is not None
    assert held.batch_id == half.id
    assert service.assemble()
    assert f"It waits until {half.id} has ended" in waits_for(service, newest)
    service.state.duties.free_those_of("somebody/1", lost=False)
    assert service.assemble()
    manifest = service.client.get(half.id).manifest
    assert manifest is not None
    assert Manifest.model_validate_json((service.data_root / "target.parquet.manifest.json").read_bytes()) == manifest
    content = (service.data_root / "target.parquet").read_bytes()
    assert manifest.files[0].sha256 == hashlib.sha256(content).hexdigest()
    eventually(service.assemble)
    ended = service.client.get(newest.id)
    assert (ended.status, ended.progress.waiting_for) == ("completed", None)
    assert pq.read_schema(service.data_root / "target.parquet").names[0] == "a"


@pytest.mark.usefixtures("table")
def test_an_attempt_that_died_behind_the_manifest_of_a_folder_leaves_no_file_of_the_target_before(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who reads all files of the folder would find the rows of both."""
    answer_all(service, submit(service, "s.parquet", "target/", key="k1", series="s"))
    newest = submit(service, "s.parquet", "target/", key="k2", series="s", passthrough=[])
    assert service.plan()
    AnsweringWorker(service).work()
    _dies_over_its_target(service, monkeypatch, effects=2)
    assert len(list((service.data_root / "target").glob("*.parquet"))) == 2
    assert service.assemble()
    assert service.client.get(newest.id).status == "completed"
    assert [newest.id in file.name for file in (service.data_root / "target").glob("*.parquet")] == [True]


@pytest.mark.usefixtures("table")
def test_a_folder_that_is_overwritten_keeps_no_file_of_another_batch_and_all_that_no_batch_wrote(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_all(service, submit(service, "s.parquet", "target/", key="k1"))
    (service.data_root / "target" / "notes.jsonl").write_text("{}\n")
    newest = submit(service, "s.parquet", "target/", key="another", overwrite=True)
    assert service.plan()
    AnsweringWorker(service).work()
    _dies_over_its_target(service, monkeypatch, effects=2)
    assert service.assemble()
    assert service.client.get(newest.id).status == "completed"
    left = sorted(file.name for file in (service.data_root / "target").iterdir())
    assert [newest.id in name for name in left] == [False, False, True]
    assert left[:2] == ["_manifest.json", "notes.jsonl"]


@pytest.mark.usefixtures("table")
def test_a_folder_that_was_half_published_is_empty_of_it_once_the_next_batch_has_written_there(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_duties, "ENDING_SECONDS", 0.0)
    half = submit(service, "s.parquet", "target/", key="k1", series="s")
    assert service.plan()
    AnsweringWorker(service).work()
    _dies_over_its_target(service, monkeypatch)
    newest = submit(service, "s.parquet", "target/", key="k2", series="s")
    assert service.plan()
    AnsweringWorker(service).work()
    while service.assemble():
        pass
    assert [service.client.get(batch.id).status for batch in (half, newest)] == ["cancelled", "completed"]
    assert [newest.id in file.name for file in (service.data_root / "target").glob("*.parquet")] == [True]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("target", ["target.parquet", "target/"])
def test_what_a_batch_of_the_same_series_left_without_a_manifest_is_not_in_the_way_of_the_next(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    old = submit(service, "s.parquet", target, key="k1", series="s")
    assert service.plan()
    AnsweringWorker(service).work()
    _dies_over_its_target(service, monkeypatch)
    new = submit(service, "s.parquet", target, key="k2", series="s")
    answer_all(service, new)
    while service.assemble():
        pass
    assert [service.client.get(batch.id).status for batch in (old, new)] == ["cancelled", "completed"]
    with pytest.raises(InvalidRequestError, match="target"):
        submit(service, "s.parquet", target, key="k3", series="another")


@pytest.mark.usefixtures("table")
def test_an_assembler_that_wakes_up_before_it_has_looked_writes_nothing_of_a_batch_that_has_ended(
    service: RunningService,
) -> None:
    batch = answered(service)
    late = service.state.duties.claim(DutyKind.ASSEMBLE, holder="late", lease_seconds=60)
    assert late is not None
    _overtaken(service)
    assert service.client.cancel(batch.id).status == "cancelling"
    assert service.assemble()
    manifest = service.data_root / "target.parquet.manifest.json"
    stood = manifest.read_text()
    runner(DutyKind.ASSEMBLE, service.settings)._do(late)
    assert '"cancelled"' in stood
    assert manifest.read_text() == stood
