"""Users' tables, on a file system and on S3: looked at, read as they were looked at, and published whole."""

from __future__ import annotations

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_batch_llm.storage.base import ChangedError
from airflow_batch_llm.storage.tree import Entry
from tests.storage.conftest import Place

ODD_NAMES = ["a b/c d", "a+b", "a%20b", "ä/ü€😀", "a&b=c?d#e", "x/'quoted\"", "day=2024-01-01/p.parquet"]


def test_a_file_is_looked_at_and_read(place: Place) -> None:
    uri = place.write("a/b.csv", b"content")
    entry = place.tree.stat(uri)
    assert entry is not None
    assert (entry.uri, entry.size) == (uri, 7)
    with place.tree.open(entry) as stream:
        assert stream.seek(-3, io.SEEK_END) == 4
        assert stream.read() == b"ent"
    assert list(place.tree.list(place.uri("a"))) == [entry]


def test_an_empty_file_is_a_file(place: Place) -> None:
    uri = place.write("empty", b"")
    assert place.read(uri) == b""
    entry = place.tree.stat(uri)
    place.write("empty", b"not any more")
    assert entry is not None
    with pytest.raises(ChangedError), place.tree.open(entry) as stream:
        stream.read()


def test_where_no_file_is_there_is_none(place: Place) -> None:
    place.write("a/b.csv", b"")
    for name in ("", "a", "b.csv", "a/b", "a/b.csv/c", "c/d"):
        assert place.tree.stat(place.uri(name)) is None


def test_a_folder_is_where_something_is_below(place: Place) -> None:
    place.write("a/b/c.csv", b"")
    assert [place.tree.is_folder(place.uri(name)) for name in ("", "a", "a/", "a/b")] == [True] * 4
    assert [place.tree.is_folder(place.uri(name)) for name in ("a/b/c.csv", "a/b/c", "b", "a/b/c.csv/d")] == [False] * 4


def test_files_are_listed_in_the_order_of_their_uris_without_what_is_no_data(place: Place) -> None:
    shown = ["b/2", "b.x", "b-/1", "a", "b/10/x_y", "b/10/x.y", "b/c=1/p", "Z", "ä"]
    hidden = ["_SUCCESS", ".a.crc", "_temporary/0/p", "b/_metadata", "b/.b/p", "b/c=1/.p.crc"]
    for name in shown + hidden:
        place.write(name, name.encode())
    found = list(place.tree.list(place.uri("")))
    assert [entry.uri for entry in found] == sorted(place.uri(name) for name in shown)
    for entry in found:
        assert place.tree.stat(entry.uri) == entry
    assert [entry.uri for entry in place.tree.list(place.uri("b/10"))] == [place.uri("b/10/x.y"), place.uri("b/10/x_y")]


def test_what_is_not_wanted_is_not_listed(place: Place) -> None:
    """Of a folder that nothing is wanted of, a file system does not even read the names."""
    for name in ("a/1.csv", "a/b/2.csv", "c/3.csv", "c/4.txt"):
        place.write(name, b"")
    asked: list[str] = []

    class Wanted:
        def file(self, uri: str) -> bool:
            asked.append(uri)
            return uri.endswith(".csv")

        def folder(self, uri: str) -> bool:
            return not uri.endswith("/b")

    found = [entry.uri for entry in place.tree.list(place.uri(""), Wanted())]
    assert {place.uri("a/1.csv"), place.uri("c/3.csv")} <= set(found)
    assert place.uri("c/4.txt") not in found
    if not place.uri("").startswith("s3://"):
        assert not [uri for uri in [*asked, *found] if "/b/" in uri]


def test_a_hidden_folder_that_is_asked_for_is_listed(place: Place) -> None:
    uri = place.write("_a/.b/c", b"")
    assert [entry.uri for entry in place.tree.list(place.uri("_a/.b"))] == [uri]


def test_what_is_no_folder_has_no_files(place: Place) -> None:
    place.write("a", b"")
    assert list(place.tree.list(place.uri("a"))) == []
    assert list(place.tree.list(place.uri("b"))) == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_come_back_to_the_letter(place: Place, name: str) -> None:
    uri = place.write(name, name.encode())
    assert [entry.uri for entry in place.tree.list(place.uri(""))] == [uri]
    assert place.read(uri) == name.encode()
    place.tree.delete(uri)
    assert place.tree.stat(uri) is None


@pytest.mark.parametrize("new_size", [0, 10, 3_000_000])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_file_that_changed_since_it_was_looked_at_is_not_read(place: Place, size: int, new_size: int) -> None:
    uri = place.write("a", b"a" * size)
    entry = place.tree.stat(uri)
    assert entry is not None
    while place.tree.stat(uri) == entry:  # a file system's clock may not have ticked yet
        place.write("a", b"b" * new_size)
    with pytest.raises(ChangedError), place.tree.open(entry) as stream:
        stream.read()


def test_a_file_that_is_gone_is_not_found(place: Place) -> None:
    uri = place.write("a", b"a")
    entry = place.tree.stat(uri)
    place.tree.delete(uri)
    assert entry is not None
    with pytest.raises(FileNotFoundError), place.tree.open(entry) as stream:
        stream.read()
    with pytest.raises(FileNotFoundError), place.tree.open(dataclasses.replace(entry, size=0)) as stream:
        stream.read()


def test_what_stands_there_is_replaced_only_if_that_is_said(place: Place) -> None:
    uri = place.write("a", b"before")
    with place.tree.scratch(uri) as path:
        path.write_bytes(b"after")
        with pytest.raises(FileExistsError):
            place.tree.publish(path, uri, over=None)
        assert place.read(uri) == b"before"
        place.tree.publish(path, uri, over=place.tree.stat(uri))
    assert place.read(uri) == b"after"


def test_what_has_changed_since_it_was_looked_at_is_not_replaced(place: Place) -> None:
    uri = place.write("a", b"before")
    looked_at = place.tree.stat(uri)
    place.write("a", b"somebody else's")
    with place.tree.scratch(uri) as path:
        path.write_bytes(b"after")
        with pytest.raises(ChangedError, match="was not touched"):
            place.tree.publish(path, uri, over=looked_at)
        assert place.read(uri) == b"somebody else's"
        place.tree.delete(uri)
        with pytest.raises(ChangedError):
            place.tree.publish(path, uri, over=looked_at)
    assert place.tree.stat(uri) is None


def test_of_many_that_publish_at_once_exactly_one_wins(place: Place) -> None:
    uri = place.uri("a/b")
    ready = threading.Barrier(8)

    def publish(number: int) -> bytes | None:
        content = b"%d" % number * 1000
        with place.tree.scratch(uri) as path:
            path.write_bytes(content)
            ready.wait()
            try:
                place.tree.publish(path, uri, over=None)
            except FileExistsError:
                return None
            return content

    with ThreadPoolExecutor(8) as threads:
        won = [content for content in threads.map(publish, range(8)) if content is not None]
    assert won == [place.read(uri)]


def test_what_was_not_published_leaves_nothing(place: Place) -> None:
    uri = place.uri("a/b.parquet")
    with pytest.raises(KeyboardInterrupt), place.tree.scratch(uri) as path:
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not path.exists()
    with place.tree.scratch(uri):
        pass
    assert place.tree.stat(uri) is None
    assert list(place.tree.list(place.uri(""))) == []


def test_what_is_not_there_can_be_deleted(place: Place) -> None:
    uri = place.write("a", b"")
    for missing in (f"{uri}/b", place.uri("b"), place.uri("b/c")):
        place.tree.delete(missing)
    place.tree.delete(uri)
    place.tree.delete(uri)
    assert place.tree.stat(uri) is None


@pytest.mark.parametrize("uri", ["relative/path", "", "s3:/a/b", "s3://", "http://a/b"])
def test_what_is_no_uri_of_the_tree_is_refused(place: Place, tmp_path: Path, uri: str) -> None:
    for call in (place.tree.stat, place.tree.is_folder, place.tree.delete, lambda uri: list(place.tree.list(uri))):
        with pytest.raises(ValueError, match="is not"):
            call(uri)
    with pytest.raises(ValueError, match="is not"), place.tree.open(Entry(uri, 1, "")):
        pass
    with pytest.raises(ValueError, match="is not"):
        place.tree.publish(tmp_path, uri, over=None)
