"""What only S3 has: requests that cost, answers that get lost, servers that know less, and rights that are missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import free_port

from airflow_batch_llm.storage import s3_keys, s3_upload
from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError
from airflow_batch_llm.storage.s3 import S3Storage
from airflow_batch_llm.storage.s3_client import client, forget_client
from airflow_batch_llm.storage.s3_tree import S3Tree
from airflow_batch_llm.storage.tree import Entry
from tests.s3_server import Bucket, Fault, Request, point_at

MIB = 1024 * 1024


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """boto3 does not wait before it tries again, and its allowance of tries is not used up by the tests before."""
    forget_client()
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None))
    yield
    forget_client()


def gets(s3: Bucket) -> list[Request]:
    return [request for request in s3.server.requests if request.method == "GET"]


def publish(s3: Bucket, path: Path, content: bytes, *, over: Entry | None = None) -> Entry | None:
    path.write_bytes(content)
    S3Tree().publish(path, s3.uri("a"), over=over)
    return S3Tree().stat(s3.uri("a"))


def test_keys_are_listed_and_deleted_a_page_at_a_time(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_keys, "PAGE", 40)
    s3.put_many(f"a/{number:03}" for number in range(400))
    s3.put_many(["ab"])
    storage = S3Storage(s3.name)
    assert list(storage.list("a")) == [f"a/{number:03}" for number in range(400)]
    assert len(s3.server.requests) == 10
    storage.delete_prefix("a")
    assert list(storage.list("")) == ["ab"]
    deleting = [request for request in s3.server.requests if request.method == "POST"]
    assert len(deleting) == 10
    assert all(request.headers["content-md5"] for request in deleting)


def test_pages_are_as_large_as_s3_has_them_and_the_next_is_not_asked_for_early(s3: Bucket) -> None:
    s3.put_many(f"a/{number:05}" for number in range(2_001))
    listed = S3Tree().list(s3.uri("a"))
    next(listed)
    assert len(s3.server.requests) == 1
    assert len(list(listed)) == 2_000
    assert len(s3.server.requests) == 3


def test_a_folder_key_of_a_console_is_no_file(s3: Bucket) -> None:
    s3.put_many(["a/", "a/b/", "a/b/c"])
    assert [entry.uri for entry in S3Tree().list(s3.uri("a"))] == [s3.uri("a/b/c")]
    assert list(S3Storage(s3.name).list("a")) == ["a/b/c"]
    s3.put_many(["empty/"])
    assert S3Tree().is_folder(s3.uri("empty"))


def test_a_storage_may_have_a_whole_bucket_or_a_part_and_keeps_to_it(s3: Bucket) -> None:
    whole, part, other = (S3Storage(s3.name, prefix) for prefix in ("", "/a/b/", "a/bc"))
    part.put("k", b"")
    other.put("k", b"")
    assert list(whole.list("")) == ["a/b/k", "a/bc/k"]
    assert list(part.list("")) == ["k"]
    part.delete_prefix("")
    assert list(whole.list("")) == ["a/bc/k"]


def test_a_small_object_is_read_with_one_request(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a", b"a" * MIB)
    entry = S3Tree().stat(s3.uri("a"))
    assert entry is not None
    s3.server.requests.clear()
    with storage.open("a") as stream:
        assert stream.read(10) + stream.read() == b"a" * MIB
    assert len(s3.server.requests) == 1
    with S3Tree().open(entry) as stream:
        stream.seek(-8, 2)
        assert stream.read(8) == b"a" * 8
        stream.seek(0)
        assert stream.read() == b"a" * MIB
    assert len(s3.server.requests) == 2


def test_one_who_reads_on_gets_longer_ranges_each_of_the_same_version(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a", bytes(33 * MIB))
    with storage.open("a") as stream:
        while stream.read(100_000):
            pass
    assert [request.sent / MIB for request in gets(s3)] == [1, 2, 4, 8, 8, 8, 2]
    assert len({request.headers.get("if-match") for request in gets(s3)[1:]} - {None}) == 1


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a", b"a" * 3 * MIB)
    with storage.open("a") as stream:
        stream.read(10)
        storage.put("a", b"b" * 3 * MIB)
        with pytest.raises(ChangedError, match="replaced in between"):
            stream.read()


def test_of_a_parquet_file_only_what_is_needed_is_read(s3: Bucket) -> None:
    rows = 200_000
    table = pa.table({"id": range(rows), "text": [f"{number} {number**5} text" * 4 for number in range(rows)]})
    tree, uri = S3Tree(), s3.uri("t.parquet")
    with tree.scratch(uri) as path:
        pq.write_table(table, path, row_group_size=50_000, compression="none", use_dictionary=False)
        tree.publish(path, uri, over=None)
    entry = tree.stat(uri)
    assert entry is not None
    assert entry.size > 15_000_000
    s3.server.requests.clear()
    with tree.open(entry) as stream, pq.ParquetFile(stream) as file:
        assert file.metadata.num_rows == rows
        assert [request.sent for request in gets(s3)] == [65_536]
        assert file.read_row_group(2, columns=["id"]).column(0).to_pylist() == list(range(100_000, 150_000))
        assert len(gets(s3)) <= 3
        assert sum(request.sent for request in gets(s3)) < 600_000
        assert file.read() == table
    assert sum(request.sent for request in gets(s3)) < entry.size * 1.1


def test_an_answer_that_breaks_off_is_asked_for_again(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a", b"a" * 3 * MIB)
    cut = Fault(lambda method, _: method == "GET", times=2, status="", body=b"", cut=True)
    with s3.server.answering(cut), storage.open("a") as stream:
        assert stream.read() == b"a" * 3 * MIB
    assert len(gets(s3)) == 4


def test_a_request_without_an_answer_is_tried_five_times_and_not_five_times_five(s3: Bucket, impatient: None) -> None:
    with (
        s3.server.failing("500 Internal Server Error", "InternalError"),
        pytest.raises(StorageTroubleError),
        S3Storage(s3.name).open("a"),
    ):
        pass
    assert len(s3.server.requests) == 5


def test_a_server_that_ignores_the_version_does_not_mix_two(s3: Bucket, impatient: None) -> None:
    def ignore(params: dict[str, Any], **_: object) -> None:
        params["headers"].pop("If-Match", None)

    storage = S3Storage(s3.name)
    storage.put("a", b"a" * 3 * MIB)
    client().meta.events.register("before-call.s3.GetObject", ignore)
    with storage.open("a") as stream:
        storage.put("a", b"b" * 3 * MIB)
        with pytest.raises(ChangedError, match="replaced while"):
            stream.read()


def test_an_answer_that_always_breaks_off_is_trouble(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a", b"a" * MIB)
    cut = Fault(lambda method, _: method == "GET", times=1_000, status="", body=b"", cut=True)
    with s3.server.answering(cut), pytest.raises(StorageTroubleError), storage.open("a"):
        pass


def test_a_large_file_goes_up_in_parts_and_what_goes_wrong_leaves_none(
    s3: Bucket, tmp_path: Path, impatient: None
) -> None:
    content = bytes(range(256)) * (17 * 4096)
    path = tmp_path / "file"
    path.write_bytes(content)
    S3Storage(s3.name).put_file("a", path)
    with S3Storage(s3.name).open("a") as stream:
        assert stream.read() == content
    assert sum("partNumber" in request.query for request in s3.server.requests) == 3
    with (
        s3.server.failing(
            "500 Internal Server Error", "InternalError", when=lambda _, target: "partNumber=2" in target
        ),
        pytest.raises(StorageTroubleError),
    ):
        path.write_bytes(bytes(20 * MIB))
        S3Storage(s3.name).put_file("a", path)
    assert client().list_multipart_uploads(Bucket=s3.name).get("Uploads", []) == []
    with S3Storage(s3.name).open("a") as stream:
        assert stream.read() == content


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("limit", [5 * 1024**3, 5])
def test_a_publish_whose_answer_got_lost_knows_its_own_object(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None, limit: int, before: bytes | None
) -> None:
    monkeypatch.setattr(s3_upload, "LARGEST_PUT", limit)
    over = None if before is None else publish(s3, tmp_path / "file", before)

    def last(method: str, target: str) -> bool:
        return (method == "PUT" and target.endswith("?")) or (method == "POST" and "uploadId" in target)

    with s3.server.failing("500 Internal Server Error", "InternalError", when=last, times=1, after=True) as lost:
        entry = publish(s3, tmp_path / "file", b"content", over=over)
    assert lost.seen == 1
    assert entry is not None
    assert entry.size == 7


@pytest.mark.parametrize("limit", [5 * 1024**3, 5])
def test_an_object_that_came_between_is_not_replaced(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(s3_upload, "LARGEST_PUT", limit)
    monkeypatch.setattr(S3Tree, "stat", lambda self, uri: None)
    S3Storage(s3.name).put("a", b"somebody else's")
    with pytest.raises(FileExistsError, match="already"):
        publish(s3, tmp_path / "file", b"content")
    with S3Storage(s3.name).open("a") as stream:
        assert stream.read() == b"somebody else's"
    assert client().list_multipart_uploads(Bucket=s3.name).get("Uploads", []) == []


@pytest.mark.parametrize("came", [b"somebody else's", None])
@pytest.mark.parametrize("limit", [5 * 1024**3, 5])
def test_an_object_that_was_replaced_or_deleted_while_a_file_was_on_its_way_stays_as_it_is(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, came: bytes | None
) -> None:
    looked_at = publish(s3, tmp_path / "file", b"before")
    monkeypatch.setattr(s3_upload, "LARGEST_PUT", limit)
    monkeypatch.setattr(S3Tree, "stat", lambda self, uri: looked_at)
    if came is None:
        S3Storage(s3.name).delete("a")
    else:
        S3Storage(s3.name).put("a", came)
    with pytest.raises(ChangedError, match="was not touched"):
        publish(s3, tmp_path / "file", b"content", over=looked_at)
    assert [client().get_object(Bucket=s3.name, Key=key)["Body"].read() for key in S3Storage(s3.name).list("")] == (
        [] if came is None else [came]
    )


def test_a_server_that_does_not_know_the_condition_gets_the_file_without_it(s3: Bucket, tmp_path: Path) -> None:
    with s3.server.failing("501 Not Implemented", "NotImplemented", when=lambda method, _: method == "PUT", times=1):
        assert publish(s3, tmp_path / "file", b"content") is not None
    assert ["if-none-match" in request.headers for request in s3.server.requests if request.method == "PUT"] == [
        True,
        False,
    ]
    with pytest.raises(FileExistsError):
        publish(s3, tmp_path / "file", b"content")


def test_a_publish_that_meets_another_write_is_tried_again(s3: Bucket, tmp_path: Path) -> None:
    def puts(method: str, _: str) -> bool:
        return method == "PUT"

    with s3.server.failing("409 Conflict", "ConditionalRequestConflict", when=puts, times=2):
        assert publish(s3, tmp_path / "file", b"content") is not None
    client().delete_object(Bucket=s3.name, Key="a")
    with (
        s3.server.failing("409 Conflict", "ConditionalRequestConflict", when=puts),
        pytest.raises(StorageTroubleError, match="ConditionalRequestConflict"),
    ):
        publish(s3, tmp_path / "file", b"content")


def every_call(bucket: str, path: Path) -> dict[str, Callable[[], object]]:
    path.write_bytes(b"content")
    storage, tree, uri = S3Storage(bucket), S3Tree(), f"s3://{bucket}/a"

    def read(entry: Entry) -> None:
        with tree.open(entry) as stream:
            stream.read()

    def create() -> None:
        with storage.create("a") as stream:
            stream.write(b"content")

    return {
        "put": lambda: storage.put("a", b""),
        "put_file": lambda: storage.put_file("a", path),
        "create": create,
        "storage.open": lambda: storage.open("a").__enter__(),
        "storage.list": lambda: list(storage.list("a")),
        "storage.delete": lambda: storage.delete("a"),
        "delete_prefix": lambda: storage.delete_prefix("a"),
        "stat": lambda: tree.stat(uri),
        "is_folder": lambda: tree.is_folder(uri),
        "tree.list": lambda: list(tree.list(uri)),
        "tree.open": lambda: read(Entry(uri, 3, "x")),
        "tree.open of nothing": lambda: read(Entry(uri, 0, "x")),
        "publish": lambda: tree.publish(path, uri, over=Entry(uri, 3, "x")),
        "publish anew": lambda: tree.publish(path, uri, over=None),
        "tree.delete": lambda: tree.delete(uri),
    }


def what_every_call_raises(bucket: str, path: Path) -> Iterator[Exception]:
    for name, call in every_call(bucket, path).items():
        with pytest.raises(OSError) as caught:
            call()
            pytest.fail(f"{name} raised nothing")
        assert bucket in str(caught.value), name
        assert "a-secret" not in str(caught.value)
        yield caught.value


def test_a_refusal_is_a_permission_error_that_names_what_is_needed(s3: Bucket, tmp_path: Path) -> None:
    with s3.server.failing("403 Forbidden", "AccessDenied"):
        for error in what_every_call_raises(s3.name, tmp_path / "file"):
            assert type(error) is PermissionError
            assert "need s3:" in str(error)
            assert f"s3://{s3.name}/" in str(error)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Slow Down", "400 Bad Request"])
def test_a_server_in_trouble_is_never_taken_for_an_empty_one(
    s3: Bucket, tmp_path: Path, impatient: None, status: str
) -> None:
    with s3.server.failing(status, "SlowDown" if "503" in status else "InternalError"):
        for error in what_every_call_raises(s3.name, tmp_path / "file"):
            assert type(error) is StorageTroubleError


def test_a_server_that_is_down_is_never_taken_for_an_empty_one(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    point_at(f"http://127.0.0.1:{free_port()}", monkeypatch)
    for error in what_every_call_raises(s3.name, tmp_path / "file"):
        assert type(error) is StorageTroubleError


def test_a_bucket_that_is_not_there_is_named(s3: Bucket, tmp_path: Path) -> None:
    for error in what_every_call_raises("no-such-bucket", tmp_path / "file"):
        assert type(error) is FileNotFoundError
        assert "no bucket no-such-bucket" in str(error) or "no object" in str(error)


def test_an_object_is_missing_even_if_the_bucket_may_not_be_looked_at(s3: Bucket) -> None:
    with s3.server.failing("403 Forbidden", "403", when=lambda method, target: target == f"/{s3.name}?") as asked:
        assert S3Tree().stat(s3.uri("a")) is None
    assert asked.seen == 1


def test_what_could_not_be_deleted_is_said(s3: Bucket) -> None:
    storage = S3Storage(s3.name)
    storage.put("a/b", b"")
    for code, kind in (("AccessDenied", PermissionError), ("InternalError", StorageTroubleError)):
        said = f"<DeleteResult><Error><Key>a/b</Key><Code>{code}</Code></Error></DeleteResult>".encode()
        fault = Fault(lambda method, _: method == "POST", times=1, status="200 OK", body=said)
        with s3.server.answering(fault), pytest.raises(kind, match="a/b"):
            storage.delete_prefix("a")


def test_without_credentials_the_error_says_where_they_come_from(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
        S3Tree().stat(s3.uri("a"))


def test_a_name_that_no_bucket_can_have_is_a_value_error(s3: Bucket) -> None:
    with pytest.raises(ValueError, match="not a place on S3"):
        S3Tree().stat("s3://No Bucket!/a")


def test_an_upload_has_nothing_that_only_aws_knows_and_its_bucket_in_the_path(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    point_at(s3.server.url.replace("127.0.0.1", "localhost"), monkeypatch)
    publish(s3, tmp_path / "file", b"content")
    S3Storage(s3.name).put("b", b"content")
    for request in s3.server.requests:
        assert request.path.startswith(f"/{s3.name}")
        assert not {name for name in request.headers if "checksum" in name or "trailer" in name}


def test_threads_share_one_client(s3: Bucket) -> None:
    forget_client()
    with ThreadPoolExecutor(8) as threads:
        assert len({id(made) for made in threads.map(lambda _: client(), range(8))}) == 1


MEMORY = """
import re, sys
from pathlib import Path
from airflow_batch_llm.storage.s3 import S3Storage

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

storage = S3Storage(sys.argv[1])
storage.put("small", bytes(1024))
with storage.open("small") as stream:
    stream.read()
before = peak()
storage.put_file("large", Path(sys.argv[2]))
put = peak()
with storage.open("large") as stream:
    while stream.tell() < 100 * 1024 * 1024:  # the server of the tests reads all of it for each range
        assert stream.read(1024 * 1024)
print(put - before, peak() - before)
"""


def test_a_large_file_goes_up_and_comes_back_in_little_memory(s3: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(200 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, s3.name, path], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    put, both = map(int, done.stdout.split())
    assert put < 90, f"{put} MiB to put 200 MiB"
    assert both < 95, f"{both} MiB to put 200 MiB and to read 100 of them"
