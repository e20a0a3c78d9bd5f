"""What a cleaner asks of a storage: a listing with ages that goes on from any key, many keys gone, leftovers gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.storage.s3 import S3Storage
from airflow_batch_llm.storage.s3_client import client
from tests.s3_server import Bucket

KEYS = ["a/1", "a/b/1", "a/b/2", "a/bc/1", "a-b/1", "a.b", "ab", "b/ä/€", "b/😀", "z"]


def in_order(keys: list[str]) -> list[str]:
    return sorted(keys, key=str.encode)


def test_a_scan_has_every_key_in_order_with_its_size_and_age(storage: Storage) -> None:
    for key in KEYS:
        storage.put(key, key.encode())
    found = list(storage.scan())
    assert [one.key for one in found] == in_order(KEYS) == list(storage.list(""))
    assert [one.size for one in found] == [len(one.key.encode()) for one in found]
    assert all(abs(one.stored_at - time.time()) < 60 for one in found)
    assert [one.key for one in storage.scan("a")] == in_order([key for key in KEYS if key.startswith("a/")])


@pytest.mark.parametrize("after", [*KEYS, "a/", "a/b", "a/b/", "a/b/0", "a0", "b/~", "zz", "0"])
def test_a_scan_goes_on_behind_any_key(storage: Storage, after: str) -> None:
    for key in KEYS:
        storage.put(key, b"")
    assert [one.key for one in storage.scan(after=after)] == [
        key for key in in_order(KEYS) if key.encode() > after.encode()
    ]


def test_a_scan_of_nothing_is_empty(storage: Storage) -> None:
    assert list(storage.scan()) == list(storage.scan("a", after="b")) == []


def test_a_scan_on_s3_asks_page_by_page_and_deletes_at_most_a_thousand_at_once(s3: Bucket) -> None:
    storage = S3Storage(s3.name, "some/prefix")
    keys = [f"k/{number:05d}" for number in range(2_500)]
    s3.put_many(f"some/prefix/{key}" for key in keys)
    s3.put_many(["some/prefixes/1"])
    scan = storage.scan("k", after=keys[99])
    assert next(scan).key == keys[100]
    assert len([one for one in s3.server.requests if one.method == "GET"]) == 1
    assert len(list(scan)) == 2_399
    s3.server.requests.clear()
    storage.delete_many(keys[:2_400])
    assert len([one for one in s3.server.requests if one.method == "POST"]) == 3
    assert [one.key for one in storage.scan()] == keys[2_400:]


def test_many_keys_go_at_once_and_those_that_are_not_there_do_not_matter(storage: Storage) -> None:
    for key in KEYS:
        storage.put(key, b"")
    storage.delete_many(["a/1", "nothing", "z"])
    storage.delete_many(["a/1"])
    storage.delete_many([])
    assert list(storage.list("")) == in_order([key for key in KEYS if key not in ("a/1", "z")])


@pytest.mark.parametrize("key", ["../a", "/etc/passwd"])
def test_nothing_outside_is_scanned_or_deleted(storage: Storage, key: str) -> None:
    for call in (lambda: list(storage.scan(key)), lambda: storage.delete_many([key])):
        with pytest.raises(ValueError, match="is not a key"):
            call()


@pytest.fixture(params=["local", "s3"])
def half_written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, Callable[[str], None]]:
    """A storage, and a way to begin a write in it as a process that was killed then did."""
    if request.param == "local":
        local = LocalStorage(tmp_path / "storage")

        def begin(key: str) -> None:
            path = tmp_path / "storage" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            left = path.with_name(f".{path.name}.{'0' * 32}")
            left.write_bytes(b"half")
            os.utime(left, (1_000, 1_000))
            os.utime(path.parent, (1_000, 1_000))

        return local, begin
    bucket: Bucket = request.getfixturevalue("s3")

    def begin_on_s3(key: str) -> None:
        begun = client().create_multipart_upload(Bucket=bucket.name, Key=f"some/prefix/{key}")
        client().upload_part(
            Bucket=bucket.name, Key=f"some/prefix/{key}", UploadId=begun["UploadId"], PartNumber=1, Body=b"half"
        )

    return S3Storage(bucket.name, "some/prefix"), begin_on_s3


HalfWritten = tuple[Storage, Callable[[str], None]]


def test_writes_that_never_ended_are_removed_once_they_are_old_enough(half_written: HalfWritten) -> None:
    storage, begin = half_written
    storage.put("ours/whole", b"whole")
    begin("ours/half")
    begin("theirs/half")
    assert [one.key for one in storage.scan()] == ["ours/whole"]

    def drop(before: float) -> int:
        return storage.drop_unfinished(before=before, ours=lambda key: key.startswith("ours/"))

    assert drop(before=999.0) == 0
    assert drop(before=time.time() + 10) == 1
    assert drop(before=time.time() + 10) == 0
    assert [one.key for one in storage.scan()] == ["ours/whole"]


def test_a_folder_that_was_left_empty_goes_with_the_leftovers(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "storage")
    for key in ("a/b/c/1", "a/2"):
        storage.put(key, b"")
    storage.delete("a/b/c/1")
    storage.drop_unfinished(before=1_000.0, ours=bool)
    assert (tmp_path / "storage/a/b/c").is_dir()
    storage.drop_unfinished(before=time.time() + 10, ours=bool)
    storage.drop_unfinished(before=time.time() + 10, ours=bool)
    assert not (tmp_path / "storage/a/b").exists()
    assert list(storage.list("")) == ["a/2"]


def test_uploads_below_another_prefix_are_somebody_elses(s3: Bucket) -> None:
    client().create_multipart_upload(Bucket=s3.name, Key="some/other/1")
    storage = S3Storage(s3.name, "some/prefix")
    assert storage.drop_unfinished(before=time.time() + 10, ours=bool) == 0
