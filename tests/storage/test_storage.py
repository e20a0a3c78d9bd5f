"""Bytes by key, on a directory and on S3: whole or not there, and never outside the storage."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import pytest
import zstandard

from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local import LocalStorage

ODD_KEYS = ["a b/c d", "a+b", "a%20b", "ä/ü€😀", "a&b=c?d#e", "x/'quoted\"", "tilde~", "a:b@c"]


def test_what_is_put_is_read_listed_in_order_and_forgotten(storage: Storage, tmp_path: Path) -> None:
    storage.put("a/2", b"two")
    (tmp_path / "file").write_bytes(b"one")
    storage.put_file("a/1", tmp_path / "file")
    storage.put("b/1", b"")
    with storage.open("a/1") as stream:
        assert stream.read() == b"one"
    with storage.open("b/1") as stream:
        assert stream.read() == b""
    assert list(storage.list("a")) == ["a/1", "a/2"]
    storage.delete("a/1")
    storage.delete("a/1")
    assert list(storage.list("a")) == ["a/2"]
    storage.delete_prefix("a")
    storage.delete_prefix("a")
    assert list(storage.list("a")) == []
    assert list(storage.list("")) == ["b/1"]


def test_a_folder_is_not_what_only_begins_with_its_name(storage: Storage) -> None:
    for key in ("a/b/1", "a/b.c", "a/bc/1", "ab", "aa/1"):
        storage.put(key, b"")
    assert list(storage.list("a")) == ["a/b.c", "a/b/1", "a/bc/1"]
    assert list(storage.list("a/b")) == ["a/b/1"]
    storage.delete_prefix("a/b")
    storage.delete_prefix("ab")  # a key, and no folder
    assert list(storage.list("")) == ["a/b.c", "a/bc/1", "aa/1", "ab"]


def test_a_key_is_stored_over(storage: Storage) -> None:
    storage.put("a", b"before")
    storage.put("a", b"after")
    with storage.open("a") as stream:
        assert stream.read() == b"after"


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_names_come_back_to_the_letter(storage: Storage, key: str) -> None:
    storage.put(key, key.encode())
    with storage.open(key) as stream:
        assert stream.read() == key.encode()
    assert list(storage.list("")) == [key]
    storage.delete(key)
    assert list(storage.list("")) == []
    storage.put(f"{key}/1", b"")
    storage.delete_prefix(key)
    assert list(storage.list("")) == []


def test_a_key_that_is_not_there_is_a_file_not_found(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError), storage.open("a"):
        pass


def test_a_created_key_appears_at_the_end_of_its_block(storage: Storage) -> None:
    with storage.create("a") as stream:
        stream.write(b"one ")
        stream.write(b"two")
        assert list(storage.list("")) == []
    with storage.open("a") as stream:
        assert stream.read() == b"one two"


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_a_created_key_whose_block_raises_leaves_what_was_there(storage: Storage, error: BaseException) -> None:
    storage.put("a", b"before")
    for key in ("a", "b"):
        with pytest.raises(type(error)), storage.create(key) as stream:
            stream.write(b"half")
            raise error
    assert list(storage.list("")) == ["a"]
    with storage.open("a") as stream:
        assert stream.read() == b"before"


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/passwd"])
def test_no_key_reaches_out_of_the_storage(storage: Storage, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for call in (
        lambda: storage.put(key, b""),
        lambda: storage.put_file(key, tmp_path / "file"),
        lambda: storage.create(key).__enter__(),
        lambda: storage.open(key).__enter__(),
        lambda: list(storage.list(key)),
        lambda: storage.delete(key),
        lambda: storage.delete_prefix(key),
    ):
        with pytest.raises(ValueError, match="is not a key"):
            call()


def test_a_stream_reads_seeks_and_tells_as_a_file_does(storage: Storage, tmp_path: Path) -> None:
    chance = random.Random(1)
    content = chance.randbytes(5 * 1024 * 1024 + 7)
    storage.put("a", content)
    model = io.BytesIO(content)
    with storage.open("a") as stream:
        assert stream.readable()
        assert stream.seekable()
        for _ in range(150):
            whence = chance.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
            offset = chance.choice([0, 1, 100, 70_000, 3_000_000, 6_000_000]) * (-1 if whence == io.SEEK_END else 1)
            if whence != io.SEEK_END or -offset <= len(content):
                assert stream.seek(offset, whence) == model.seek(offset, whence)
            for _ in range(chance.randrange(4)):
                size = chance.choice([0, 1, 8, 1000, 65_536, 200_000, 2_000_000])
                assert stream.read(size) == model.read(size)
                assert stream.tell() == model.tell()
        stream.seek(11)
        assert stream.read() == content[11:]
        assert stream.read(1) == b""
        with pytest.raises((ValueError, OSError)):
            stream.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_lines_and_packed_lines_are_read_as_a_stream(storage: Storage) -> None:
    lines = [f"line {number} {'ä' * (number % 50)}\n".encode() for number in range(50_000)]
    storage.put("plain", b"".join(lines))
    storage.put("gzip", gzip.compress(b"".join(lines), 1))
    storage.put("zstd", zstandard.compress(b"".join(lines)))
    with storage.open("plain") as stream:
        assert list(stream) == lines
    with storage.open("plain") as stream, io.TextIOWrapper(stream, "utf-8", newline="\n") as text:
        assert [line.encode() for line in text] == lines
    with storage.open("gzip") as stream, gzip.open(stream) as unpacked:
        assert list(unpacked) == lines
    with storage.open("zstd") as stream, io.BufferedReader(zstandard.open(stream)) as unpacked:
        assert list(unpacked) == lines


def test_a_write_that_breaks_off_leaves_nothing_and_what_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path / "storage")
    storage.put("a", b"before")

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[:1])
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        for key in ("a", "b"):
            with pytest.raises(OSError, match="full"):
                storage.put(key, b"after")
    assert [path.read_bytes() for path in (tmp_path / "storage").iterdir()] == [b"before"]
