"""What is kept how long: everything that something needs, and nothing for ever."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.service import cleaner as cleaning
from airflow_batch_llm.service.cleaner import MARK
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.store.tables import attempts, batches, chunks, duties, files, index_batches, parts
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.keeping import House, answered, cancelled_after, submit
from tests.service.requests import create, file_of, finish, line, lines_of, openai_client

HELLO = file_of(line(number) for number in range(6))


def upload(service: RunningService, content: bytes, *, purpose: str = "batch", **form: Any) -> str:
    answer = httpx.post(
        f"{service.url}/v1/files",
        headers={"Authorization": f"Bearer {service.token}"},
        files={"file": ("rows.jsonl", content)},
        data={"purpose": purpose, **form},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def expiring(seconds: int) -> dict[str, str]:
    return {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}


def test_the_bytes_of_an_expired_or_deleted_file_go_after_the_grace_and_those_of_others_stay(
    either: RunningService,
) -> None:
    house = House(either)
    short, long = upload(either, HELLO, **expiring(3_600)), upload(either, HELLO, **expiring(20 * 86_400))
    house.later(1.0)
    assert house.stored() == sorted([f"files/{short}", f"files/{long}"])
    house.later(0.1)
    assert house.stored() == [f"files/{long}"]
    either.state.files.delete("default", long)  # a service that dies before it deletes the bytes
    house.later(1.1)
    assert house.stored() == []


def test_a_file_that_a_living_batch_is_still_to_read_is_not_touched(service: RunningService) -> None:
    house = House(service)
    requests = upload(service, HELLO, **expiring(3_600))
    rows = upload(service, b'{"text":"a"}\n', purpose="dataset", **expiring(3_600))
    body = {"input_file_id": requests, "endpoint": "/v1/chat/completions", "completion_window": "30d"}
    headers = {"Authorization": f"Bearer {service.token}"}
    of_file = httpx.post(f"{service.url}/v1/batches", json=body, headers=headers).json()["id"]
    spec = DatasetSpec(source=[rows], target="t.parquet", messages=[Message(role="user", content="{text}")])
    of_table = service.client.submit(BatchCreate(dataset=spec, model="m")).id
    house.later(100)
    assert house.stored() == sorted([f"files/{requests}", f"files/{rows}"])
    finish(service)
    assert {service.client.get(batch).status for batch in (of_file, of_table)} == {"completed"}
    house.later(0.1)
    assert not house.stored("files")


def test_a_file_that_a_table_is_to_be_read_from_cannot_be_deleted_before_it_is_planned(service: RunningService) -> None:
    rows = upload(service, b'{"text":"a"}\n', purpose="dataset")
    spec = DatasetSpec(source=rows, target="t.parquet", messages=[Message(role="user", content="{text}")])
    service.client.submit(BatchCreate(dataset=spec, model="m"))
    headers = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.delete(f"{service.url}/v1/files/{rows}", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    assert service.plan()
    assert httpx.delete(f"{service.url}/v1/files/{rows}", headers=headers).status_code == 200


def test_of_an_ended_table_what_only_its_run_needed_goes_and_its_parts_stay(either: RunningService) -> None:
    house = House(either)
    AnsweringWorker(either, engine_identity="e")
    batch = answered(either, submit(either, ["a", "b", "a"]), failing=[1])
    staged = {"files.json", "files/000000/rows.parquet", "chunks/000000.jsonl.zst", "keys.parquet", "copies.parquet"}
    assert staged < house.of(batch)
    house.later(0.9)
    assert staged < house.of(batch)
    house.later(0.2)
    assert house.of(batch) == {"chunks/"}
    again = either.client.retry(batch.id)
    assert either.plan()
    assert either.client.get(again.id).progress.rows_done == 2
    answered(either, again)
    assert [row["llm_status"] for row in either.client.results(again.id)] == ["success"] * 3


def test_answers_that_a_plan_had_already_outlive_the_staged_plan(either: RunningService) -> None:
    """The third generation goes on from the second, whose plan has the answers of the first."""
    house = House(either)
    cancelled_after(either, submit(either, key="k", reuse="never"), 2)
    second = submit(either, key="k", reuse="never")
    either.client.cancel(second.id)
    assert either.assemble()
    house.later(1.2)
    assert house.of(second) == {"results/000000000000.jsonl.zst"}
    third = submit(either, key="k", reuse="never")
    assert third.progress.rows_done == 2
    assert answered(either, third).request_counts.completed == 3


def test_of_an_ended_request_file_the_ids_and_the_results_stay_with_the_parts(either: RunningService) -> None:
    house = House(either)
    with openai_client(either) as client:
        batch = create(client, HELLO)
        assert either.plan()
        first = page(either, batch.id, limit=2, worker=AnsweringWorker(either))
        finish(either)
        house.later(1.1)
        kept = house.of(either.client.get(batch.id))
        assert kept == {"chunks/", "rows.parquet", "output.jsonl", "index.parquet"}
        rest = page(either, batch.id, after=first["last_id"])
        assert len({row["custom_id"] for row in first["data"] + rest["data"]}) == 6
        batch = client.batches.retrieve(batch.id)
        assert len(lines_of(client, batch.output_file_id)) == 6


def page(service: RunningService, batch_id: str, *, worker: AnsweringWorker | None = None, **query: Any) -> Any:
    if worker is not None:
        claim, lines = worker.claim()  # type: ignore[misc]
        worker.link.release(claim, [worker.store(claim, 0, lines[:2])], outcome="stopped")
    answer = httpx.get(
        f"{service.url}/v1/batches/{batch_id}/results",
        params=query,
        headers={"Authorization": f"Bearer {service.token}"},
    )
    return answer.json()


def test_after_its_time_nothing_of_a_batch_is_left_but_its_record_and_its_target(either: RunningService) -> None:
    house = House(either, keep_seconds=20 * 86_400)
    AnsweringWorker(either, engine_identity="e")
    batch = answered(either, submit(either, name="first"), failing=[0])
    with openai_client(either) as client:
        of_file = create(client, HELLO)
        finish(either, engine_identity="e")
    house.later(19)
    assert submit(either, name="reusing").progress.rows_reused == 2
    assert house.of(batch)
    house.later(2)
    assert submit(either, name="asked-anew").progress.rows_reused == 0
    assert either.state.index_files.living("default") == ([], [])
    house.later(11)
    kept = [key for key in house.stored("") if batch.id in key or of_file.id in key]
    assert kept == []
    assert (either.data_root / "first-out.parquet").exists()
    assert either.client.get(batch.id).status == "completed"
    for ended in (batch.id, of_file.id):
        error = page(either, ended)["error"]
        assert error["code"] == "results_expired"
        assert "have expired: they were kept until " in error["message"]
    assert "first-out.parquet" in page(either, batch.id)["error"]["message"]
    with pytest.raises(ConflictError, match=r"What batch .* had done is gone: it was kept until .* as a new batch"):
        either.client.retry(batch.id)


def test_result_files_are_kept_as_long_as_was_said_even_if_that_is_longer(either: RunningService) -> None:
    house = House(either, keep_seconds=86_400)
    with openai_client(either) as client:
        batch = create(client, HELLO, extra_body={"output_expires_after": {"anchor": "created_at", "seconds": 864_000}})
        finish(either)
        house.later(9)
        batch = client.batches.retrieve(batch.id)
        assert len(lines_of(client, batch.output_file_id)) == 6
        assert len(page(either, batch.id)["data"]) == 6
        house.later(3)
        assert house.stored("batches") == []


def test_what_a_later_generation_may_go_on_from_waits_until_that_is_planned(either: RunningService) -> None:
    house = House(either)
    first = cancelled_after(either, submit(either, key="k", reuse="never"), 2)
    house.later(10)
    second = submit(either, key="k", reuse="never", plan=False)
    assert second.generation == 2
    house.later(100)
    assert house.of(first) == {"chunks/"}
    assert either.plan()
    assert either.client.get(second.id).progress.rows_done == 2
    ended = answered(either, second)
    assert [row["llm_output"] for row in either.client.results(ended.id)] == ["answer 0", "answer 1", "answer 2"]
    house.later(0.1)
    assert house.of(first) == set()


def test_a_generation_after_one_whose_bytes_are_gone_asks_for_all_rows(service: RunningService) -> None:
    house = House(service)
    cancelled_after(service, submit(service, key="k", reuse="never"), 2)
    house.later(31.5)
    second = submit(service, key="k", reuse="never")
    assert (second.generation, second.progress.rows_done) == (2, 0)
    assert answered(service, second).request_counts.completed == 3


def test_a_generation_that_is_opened_while_bytes_are_dropped_is_seen(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the look for what is due and the lock: the look under the lock counts."""
    house = House(service)
    first = cancelled_after(service, submit(service, key="k", reuse="never"), 2)
    from airflow_batch_llm.store import retention

    lock = retention._lock_generations
    opened = []

    def opened_meanwhile(connection: Any, batch: Any) -> None:
        lock(connection, batch)

    def look(self: Any, batch: Any, keep: float) -> bool:
        opened.append(submit(service, key="k", reuse="never", plan=False))
        return dropped(self, batch, keep)

    dropped = retention.Retention._drop_bytes
    monkeypatch.setattr(retention, "_lock_generations", opened_meanwhile)
    monkeypatch.setattr(retention.Retention, "_drop_bytes", look)
    house.later(40)
    assert house.of(first) == {"chunks/"}
    assert service.plan()
    assert service.client.get(opened[0].id).progress.rows_done == 2


def test_a_living_batch_of_any_age_is_not_touched(either: RunningService) -> None:
    house = House(either)
    validating = submit(either, name="validating", plan=False)
    either.state.storage.put(f"batches/{validating.id}/plan-1/results/000000000000.jsonl.zst", b"being staged")
    assert either.plan()
    living = [submit(either, name=f"s{number}") for number in range(2)]
    worker = AnsweringWorker(either)
    claim, lines = worker.claim()  # type: ignore[misc]
    worker.link.extend(claim, [worker.store(claim, 0, lines[:2])])
    before = house.stored()
    house.later(1_000)
    assert house.stored() == before
    worker.link.commit(claim, [worker.store(claim, 1, lines[2:])])
    worker.work()
    while either.assemble():
        pass
    for batch in (validating, *living):
        assert either.client.get(batch.id).request_counts.completed == 3


def test_a_plan_that_is_being_staged_is_not_touched(service: RunningService) -> None:
    house = House(service)
    batch = submit(service, plan=False)
    key = f"batches/{batch.id}/plan-1/rows.parquet"
    service.state.storage.put(key, b"being staged")
    house.later(1_000)
    assert house.stored() == [key]
    service.client.cancel(batch.id)
    house.later(0.3)
    assert house.stored() == []


def test_what_killed_processes_left_goes_after_the_grace(either: RunningService) -> None:
    house = House(either)
    storage = either.state.storage
    batch = submit(either)
    unknown, index = f"batch_{'0' * 32}", f"index/{'0' * 16}/{'1' * 32}.parquet"
    left = [
        f"batches/{batch.id}/chunks/000000/7-0-{'0' * 16}.jsonl.zst",
        f"batches/{batch.id}/plan-7/rows.parquet",
        f"batches/{unknown}/chunks/000000/1-0-{'0' * 16}.jsonl.zst",
        f"batches/{unknown}/plan-1/rows.parquet",
        f"files/file-{'0' * 32}",
        index,
    ]
    others = ["notes.txt", "files/mine", "batches/b/plan-1/x", "index/x.parquet", f"batches/{batch.id}/later/x"]
    for key in left + others:
        storage.put(key, b"x")
    house.later(0.9)
    assert set(left) <= set(house.stored())
    house.later(0.4)
    assert not set(left) & set(house.stored())
    assert set(others) <= set(house.stored())
    assert answered(either, batch).request_counts.completed == 3


def test_what_assemblers_that_died_have_written_goes_and_the_result_files_stay(service: RunningService) -> None:
    house = House(service)
    with openai_client(service) as client:
        batch = create(client, HELLO)
        finish(service)
        service.state.storage.put(f"batches/{batch.id}/files-9/output.jsonl", b"half")
        house.later(1.3)
        assert not house.stored(f"batches/{batch.id}/files-9")
        batch = client.batches.retrieve(batch.id)
        assert len(lines_of(client, batch.output_file_id)) == 6


def test_the_record_goes_in_the_end_and_its_key_is_free_again(service: RunningService) -> None:
    house = House(service)
    batch = cancelled_after(service, submit(service, key="k"), 1)
    with openai_client(service) as client:
        of_file = create(client, HELLO)
        finish(service)
    house.later(364)
    assert service.client.get(batch.id).status == "cancelled"
    house.later(2)
    for batch_id in (batch.id, of_file.id):
        with pytest.raises(NotFoundError):
            service.client.get(batch_id)
    house.later(400)
    with service.state.database.reading() as connection:
        for table in (batches, chunks, parts, attempts, duties, index_batches, files):
            assert connection.scalar(select(func.count()).select_from(table)) == 0, table.name
    assert submit(service, key="k").generation == 1


def test_a_record_waits_until_its_end_was_told(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(service)
    batch = cancelled_after(service, submit(service), 1)
    with monkeypatch.context() as patch:
        patch.setattr(house.notifier, "run_once", lambda: False)
        house.later(400)
        house.later(400)
    assert service.client.get(batch.id).status == "cancelled"
    house.later(1)
    with pytest.raises(NotFoundError):
        service.client.get(batch.id)


def test_the_record_of_an_early_generation_is_kept_while_its_key_is_used(service: RunningService) -> None:
    house = House(service)
    first = cancelled_after(service, submit(service, key="k"), 1)
    house.later(200)
    second = submit(service, key="k")
    house.later(300)
    assert service.client.get(first.id).status == "cancelled"
    assert service.client.get(second.id).generation == 2


def test_index_files_whose_answers_may_not_be_used_any_more_go_without_another_batch(service: RunningService) -> None:
    house = House(service, keep_seconds=1_000 * 86_400)
    AnsweringWorker(service, engine_identity="e")
    answered(service, submit(service))
    assert house.stored("index")
    house.later(31)
    assert not house.stored("index")


def test_two_replicas_never_clean_at_once(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(service)
    other = House(service)
    inside = []

    def sweep(self: Any, turn: Any) -> bool:
        inside.append(other.cleaner.run_once())
        return False

    monkeypatch.setattr(cleaning.Cleaner, "_sweep", sweep)
    assert house.cleaner.run_once()
    assert inside == [False]


def test_a_cleaner_that_lost_its_turn_stops_when_it_wakes_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, other = House(service), House(service)
    old = f"files/file-{'0' * 32}"
    drop = cleaning.Cleaner._drop_index

    def asleep(self: Any, turn: Any) -> bool:
        monkeypatch.setattr(cleaning.Cleaner, "_drop_index", drop)
        other.now = house.now + cleaning.LEASE_SECONDS + 1
        assert other.cleaner.cleanings.claim("another", lease_seconds=cleaning.LEASE_SECONDS)
        service.state.storage.put(old, b"x")
        os.utime(service.settings.storage_root / old, (1_000, 1_000))
        return False

    monkeypatch.setattr(cleaning.Cleaner, "_drop_index", asleep)
    assert house.cleaner.run_once()
    assert house.stored() == [old]


@pytest.mark.parametrize("seam", ["delete_many", "delete_prefix"])
@pytest.mark.parametrize("after", [False, True])
def test_a_cleaner_that_dies_around_a_deletion_leaves_nothing_for_good(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, seam: str, after: bool
) -> None:
    house = House(service)
    answered(service, submit(service))
    upload(service, HELLO, **expiring(3_600))

    class CleanerCrash(BaseException):
        pass

    deleting = getattr(LocalStorage, seam)

    def dying(*arguments: Any) -> None:
        if after:
            deleting(*arguments)
        raise CleanerCrash

    for days in (1.1, 30):
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, seam, dying)
            with contextlib.suppress(CleanerCrash):
                house.later(days)
        house.later(0.3)
    house.later(1)
    assert house.stored() == []


def test_a_storage_that_is_another_stores_is_not_swept_and_that_is_said(either: RunningService) -> None:
    house = House(either)
    storage = either.state.storage
    storage.put(MARK, b"another")
    foreign = f"files/file-{'0' * 32}"
    storage.put(foreign, b"x")
    house.later(10)
    assert house.stored() == [foreign]
    assert "bears the mark of store another" in (house.cleaner.cleanings.trouble() or "")
    storage.delete(MARK)
    house.later(1)
    assert house.stored() == []
    assert house.cleaner.cleanings.trouble() is None


def test_a_sweep_of_many_keys_goes_on_where_the_round_before_stopped(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "PAGE", 7)
    monkeypatch.setattr(cleaning, "PAGES", 2)
    house = House(service)
    batch = submit(service)
    for number in range(100):
        service.state.storage.put(f"files/file-{number:032x}", b"x")
    house.now += 2 * 86_400
    assert house.cleaner.run_once()
    assert 80 < len(house.stored("files")) < 100
    house.later(0)
    assert house.stored("files") == []
    assert house.of(batch)


def test_trouble_with_one_step_leaves_the_others_alone(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(service)
    upload(service, HELLO, **expiring(3_600))

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError("not allowed to list uploads")

    monkeypatch.setattr(LocalStorage, "drop_unfinished", refuse)
    house.later(2)
    assert house.stored() == []


def test_a_running_service_cleans(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(service)
    upload(service, HELLO, **expiring(3_600))
    house.now += 3 * 86_400
    over = threading.Event()
    monkeypatch.setattr(over, "wait", lambda _: over.set())
    house.cleaner.run_until(over)
    assert house.stored() == []


def test_a_file_that_is_being_read_when_its_batch_is_deleted_comes_whole_or_says_so(either: RunningService) -> None:
    with openai_client(either) as client:
        batch = create(client, HELLO)
        finish(either)
        batch = client.batches.retrieve(batch.id)
    headers = {"Authorization": f"Bearer {either.token}"}
    with httpx.stream("GET", f"{either.url}/v1/files/{batch.output_file_id}/content", headers=headers) as answer:
        assert httpx.delete(f"{either.url}/v1/batches/{batch.id}", headers=headers).status_code == 200
        content = io.BytesIO(b"".join(answer.iter_bytes()))
    assert len(content.read().splitlines()) == 6


def test_every_row_of_a_table_is_there_after_the_sources_generation_was_deleted(service: RunningService) -> None:
    first = cancelled_after(service, submit(service, key="k", reuse="never"), 2)
    second = submit(service, key="k", reuse="never", plan=False)
    headers = {"Authorization": f"Bearer {service.token}"}
    assert httpx.delete(f"{service.url}/v1/batches/{first.id}", headers=headers).status_code == 200
    assert service.plan()
    assert answered(service, second).request_counts.completed == 3
    assert pq.read_table(service.data_root / "s-out.parquet").num_rows == 3
    assert pa.types.is_string(pq.read_schema(service.data_root / "s-out.parquet").field("llm_output").type)
