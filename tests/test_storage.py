"""Bytes by key: whole or not there, and never outside the storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_batch_llm.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def test_what_is_put_is_read_listed_in_order_and_forgotten(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/2", b"two")
    (tmp_path / "file").write_bytes(b"one")
    storage.put_file("a/1", tmp_path / "file")
    storage.put("b/1", b"")
    with storage.open("a/1") as stream:
        assert stream.read() == b"one"
    assert list(storage.list("a")) == ["a/1", "a/2"]
    storage.delete("a/1")
    storage.delete("a/1")
    assert list(storage.list("a")) == ["a/2"]
    storage.delete_prefix("a")
    storage.delete_prefix("a")
    assert list(storage.list("a")) == []
    assert list(storage.list("b")) == ["b/1"]


def test_a_key_that_is_not_there_is_a_file_not_found(storage: LocalStorage) -> None:
    with pytest.raises(FileNotFoundError), storage.open("a"):
        pass


def test_a_write_that_breaks_off_leaves_nothing_and_what_was_there_before(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/passwd"])
def test_no_key_reaches_out_of_the_storage(storage: LocalStorage, key: str) -> None:
    for call in (lambda: storage.put(key, b""), lambda: storage.delete(key), lambda: storage.delete_prefix(key)):
        with pytest.raises(ValueError, match="is not a key"):
            call()
