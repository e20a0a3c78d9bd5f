"""The doctor finds each thing that is wrong, nothing that is right, and removes orphans alone."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from typer.testing import CliRunner

from airflow_batch_llm.cli import app
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import comparison
from airflow_batch_llm.service.cleaner import MARK
from airflow_batch_llm.service.comparison import side_by_side
from airflow_batch_llm.service.doctor import SHOWN, Check, Doctor, report
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.base import StoredObject
from airflow_batch_llm.store import expected, health
from airflow_batch_llm.store.expected import Expected
from airflow_batch_llm.store.tables import batches, chunks, parts
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.keeping import DAY, House, answered, cancelled_after, submit
from tests.service.requests import create, file_of, finish, line, openai_client

ORPHAN = f"batches/batch_{'0' * 32}/plan-1/rows.parquet"


def examined(house: House, *, fix: bool = False) -> dict[str, Check]:
    """What the doctor finds at the house's time, by name."""
    doctor = Doctor.open(house.settings, database=house.database)
    return {check.name: check for check in doctor.examine(fix=fix)}


def wrong(house: House, **more: Any) -> dict[str, list[str]]:
    """The things that are wrong, by the check that found them."""
    found = examined(house, **more)
    return {name: [one["which"] for one in check.findings] for name, check in found.items() if not check.ok}


@pytest.fixture
def full(either: RunningService) -> RunningService:
    """A service with batches in every state, and a worker that serves them."""
    AnsweringWorker(either, engine_identity="e")
    answered(either, submit(either, name="done"), failing=[1])
    cancelled_after(either, submit(either, name="cancelled"), 1)
    with openai_client(either) as client:
        create(client, file_of(line(number) for number in range(5)))
        finish(either, engine_identity="e", failing={2})
        create(client, file_of(line(number) for number in range(5)))
        either.plan()
    submit(either, name="going")
    submit(either, name="waiting", plan=False)
    return either


def test_nothing_is_wrong_with_a_service_in_the_middle_of_its_work(full: RunningService) -> None:
    house = House(full)
    assert wrong(house) == {}
    for days in (0.0, 1.2, 31, 40):
        house.later(days)
        found = wrong(house)
        assert set(found) <= {"duty_leases", "waiting_batches"}, found  # its worker and its processes are long gone


def test_orphans_older_than_the_grace_are_found_and_removed_and_nothing_else(full: RunningService) -> None:
    house = House(full)
    full.state.storage.put(ORPHAN, b"four")
    before = house.stored()
    assert wrong(house) == {}, "it is too young"
    house.now += 1.1 * DAY
    check = examined(house)["orphan_objects"]
    assert (check.wrong, check.note) == (1, "4 bytes in 1 objects")
    assert ORPHAN in house.stored()
    fixed = examined(house, fix=True)["orphan_objects"]
    assert (fixed.ok, fixed.note) == (True, "4 bytes in 1 objects, removed")
    assert sorted([*house.stored(), ORPHAN]) == before


def test_what_a_cleaner_will_take_is_no_orphan_before(full: RunningService) -> None:
    house = House(full)
    house.now += 20 * DAY
    assert "orphan_objects" not in wrong(house)


def gone(service: RunningService, key: str) -> None:
    service.state.storage.delete(key)


def cut(service: RunningService, key: str) -> None:
    service.state.storage.put(key, b"")


KINDS = {
    "a part": r"batches/\w+/chunks/.*",
    "a chunk of a living batch": r"batches/{living}/plan-1/chunks/.*",
    "an upload": r"files/.*",
    "an index file": r"index/.*",
    "an output file": r".*/output\.jsonl",
    "an error file": r".*/error\.jsonl",
}


def test_an_object_that_is_missing_or_of_another_size_is_found(full: RunningService) -> None:
    house = House(full)
    storage = full.state.storage
    living = next(batch.id for batch in full.client.list(limit=100).data if batch.status == "in_progress")
    for kind, pattern in KINDS.items():
        key = next(key for key in house.stored() if re.fullmatch(pattern.replace("{living}", living), key))
        with storage.open(key) as stream:
            content = stream.read()
        storage.put(key, b"")
        assert wrong(house) == {"missing_objects": [key]}, kind
        storage.delete(key)
        assert wrong(house, fix=True) == {"missing_objects": [key]}, "only orphans are mended"
        storage.put(key, content)
    assert wrong(house) == {}


def test_ids_and_indexes_without_a_size_on_record_are_missed_too(full: RunningService) -> None:
    house = House(full)
    lost = {next(key for key in house.stored() if key.endswith(end)) for end in ("-1/rows.parquet", "-1/index.parquet")}
    for key in lost:
        full.state.storage.delete(key)
    assert set(wrong(house)["missing_objects"]) == lost


def test_what_goes_while_the_doctor_looks_is_not_missing(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(service)
    batch = answered(service, submit(service))
    of_storage = service.state.storage.__class__.scan

    def deleted_meanwhile(self: Any, *arguments: Any, **named: Any) -> Iterator[StoredObject]:
        service.state.batches.delete("default", batch.id)
        service.state.storage.delete_prefix(f"batches/{batch.id}")
        return of_storage(self, *arguments, **named)

    expected_before = list(expected.ExpectedObjects(service.state.database).all())
    assert any(batch.id in one.key for one in expected_before)
    monkeypatch.setattr(expected.ExpectedObjects, "all", lambda _: iter(expected_before))
    monkeypatch.setattr(service.state.storage.__class__, "scan", deleted_meanwhile)
    assert wrong(house) == {}


def test_leases_that_nobody_took_over_are_found(service: RunningService) -> None:
    house = House(service)
    batch = submit(service)
    unplanned = submit(service, name="unplanned", plan=False)
    worker = AnsweringWorker(service, name="lost")
    assert worker.claim()
    assert wrong(house) == {}
    house.now += 1_000
    found = wrong(house)
    assert found["chunk_leases"] == [batch.id]
    assert found["duty_leases"] == [unplanned.id]
    says = examined(house)["chunk_leases"].findings[0]["says"]
    assert "worker lost (attempt 1); the lease ran out 9" in says
    service.client.cancel(batch.id)
    service.client.cancel(unplanned.id)
    assert "chunk_leases" not in wrong(house), "its batch is ending"


def test_batches_that_wait_say_what_for(service: RunningService) -> None:
    house = House(service)
    batch = submit(service)
    troubled = submit(service, name="troubled")
    AnsweringWorker(service, model="other")
    with service.state.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == troubled.id).values(trouble="The disk is full."))
    says = {one["which"]: one["says"] for one in examined(house)["waiting_batches"].findings}
    assert says[troubled.id] == "The disk is full."
    assert "no living worker serves model 'm'" in says[batch.id]


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (update(batches).values(chunks_done=3), "It counts 3 chunks as done, and 1 are."),
        (update(batches).values(chunks_total=3), "It counts 3 chunks, and has 1."),
        (update(chunks).values(rows_done=2), "Its chunks count 2 rows as done, and its parts have 3."),
        (update(parts).values(rows=9), "Its chunks count 3 rows as done, and its parts have 9."),
        (update(batches).values(rows_done=2), "It counts 2 of 3 rows as done, and its parts have 3."),
        (update(batches).values(rows_total=4), "It completed with 3 of 4 rows."),
    ],
)
def test_counts_that_do_not_add_up_are_found(service: RunningService, spoilt: Any, says: str) -> None:
    house = House(service)
    batch = answered(service, submit(service))
    assert wrong(house) == {}
    with service.state.database.writing() as connection:
        connection.execute(spoilt)
    findings = examined(house)["counters"].findings
    assert says in [one["says"] for one in findings]
    assert {one["which"] for one in findings} == {batch.id}


def test_a_token_that_others_can_read_is_found(service: RunningService) -> None:
    house = House(service)
    path = service.settings.token_path
    try:
        path.chmod(0o644)
        assert wrong(house) == {"token_file": [str(path)]}
        assert "(mode 644). Do: chmod 600" in examined(house)["token_file"].findings[0]["says"]
    finally:
        path.chmod(0o600)


def test_a_disk_that_is_nearly_full_is_found(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(service.settings.home)._replace(free=500 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "disk_space" in wrong(House(service))


def test_tables_of_another_version_are_found_and_nothing_else_of_the_store_is_looked_at(
    settings: ServiceSettings,
) -> None:
    from airflow_batch_llm.store.database import Database

    database = Database(settings.store_url)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    found = {check.name: check for check in Doctor.open(settings).examine()}
    assert set(found) == {"migrations", "token_file", "disk_space"}
    assert "The tables are at migration 0002, and this version wants " in found["migrations"].findings[0]["says"]
    database.close()


def test_a_storage_of_another_store_is_said_and_not_mended(either: RunningService) -> None:
    house = House(either)
    house.later(0)
    either.state.storage.put(MARK, b"another")
    either.state.storage.put(ORPHAN, b"x")
    house.now += 10 * DAY
    assert set(wrong(house, fix=True)) == {"storage_mark"}
    assert ORPHAN in house.stored()


def test_a_home_without_a_store_is_said_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="There is no store at"):
        Doctor.open(ServiceSettings(home=tmp_path, data_roots=()))
    assert list(tmp_path.iterdir()) == []


def test_all_is_counted_and_some_is_shown(service: RunningService) -> None:
    house = House(service)
    for number in range(SHOWN + 5):
        service.state.storage.put(f"files/file-{number:032x}", b"xy")
    house.now += 2 * DAY
    check = examined(house)["orphan_objects"]
    assert (check.wrong, len(check.findings), check.note) == (SHOWN + 5, SHOWN, "50 bytes in 25 objects")
    assert examined(house, fix=True)["orphan_objects"].ok
    assert house.stored() == []


def test_many_records_and_keys_are_compared_page_by_page(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (expected, health, comparison):
        monkeypatch.setattr(module, "PAGE", 2)
    service.settings = dataclasses.replace(service.settings, chunk_rows=1)
    house = House(service)
    made = [answered(service, submit(service, name=f"s{number}")) for number in range(3)]
    submit(service, name="going")
    service.state.storage.put(ORPHAN, b"x")
    house.now += 1.5 * DAY
    lost = house.stored(f"batches/{made[1].id}/chunks")
    service.state.storage.delete(lost[1])
    found = wrong(house)
    assert found["orphan_objects"] == [ORPHAN]
    assert found["missing_objects"] == [lost[1]]


def test_two_streams_are_walked_side_by_side_whatever_they_lack() -> None:
    chance = random.Random(3)
    for _ in range(200):
        keys = sorted({f"{chance.randrange(30):02d}" for _ in range(20)})
        left, right = (sorted(chance.sample(keys, chance.randrange(len(keys) + 1))) for _ in range(2))
        walked = list(side_by_side((Expected(key) for key in left), (StoredObject(key, 0, 0.0) for key in right)))
        assert [one.key for one, _ in walked if one] == left
        assert [other.key for _, other in walked if other] == right
        assert {one.key for one, other in walked if one and other} == set(left) & set(right)
        assert all(one.key == other.key for one, other in walked if one and other)


def test_streams_out_of_order_are_an_error_and_no_finding() -> None:
    with pytest.raises(ValueError, match="comes after"):
        list(side_by_side(iter([Expected("b"), Expected("a")]), iter([])))


@BOTH_STORES
def test_the_command_prints_a_table_or_json_and_says_by_its_exit_code_whether_all_is_well(
    service: RunningService,
) -> None:
    home = ["doctor", "--home", str(service.settings.home)]
    if service.settings.database_url is not None:
        home += ["--database-url", service.settings.database_url]
    House(service).later(0)
    found = CliRunner().invoke(app, [*home, "--json"])
    assert (found.exit_code, json.loads(found.stdout)["ok"]) == (0, True), found.output
    service.state.storage.put(ORPHAN, b"x")
    assert CliRunner().invoke(app, home).exit_code == 0, "too young"
    found = CliRunner().invoke(app, [*home, "--grace-days", "0"])
    assert found.exit_code == 1
    assert ORPHAN in found.stdout
    found = CliRunner().invoke(app, [*home, "--grace-days", "0", "--json"])
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert (found.exit_code, checks["orphan_objects"]["findings"][0]["which"]) == (1, ORPHAN)
    assert CliRunner().invoke(app, [*home, "--grace-days", "0", "--fix"]).exit_code == 0
    assert ORPHAN not in list(service.state.storage.list(""))


def test_the_report_is_well_only_if_every_check_is() -> None:
    good, bad = Check("a", ""), Check("b", "")
    bad.add("x", "y")
    assert report([good])["ok"]
    assert not report([good, bad])["ok"]
