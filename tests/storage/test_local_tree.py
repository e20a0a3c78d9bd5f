"""What only a file system has: links, rights, other things than files, and folders that fill up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_batch_llm.storage.base import ChangedError, UnusableError
from airflow_batch_llm.storage.local_tree import MOST_FOLDERS, LocalTree


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    return folder


def test_links_are_followed(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_bytes(b"a")
    (tables / "day").symlink_to(tmp_path / "other")
    (tables / "file").symlink_to(tmp_path / "other" / "a")
    assert [entry.uri for entry in LocalTree().list(str(tables))] == [f"{tables}/day/a", f"{tables}/file"]


def test_no_link_leads_out_of_the_roots(tables: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    tree = LocalTree([tables])
    entry = LocalTree().stat(str(secret))
    (tables / "link").symlink_to(secret)
    assert entry is not None
    for call in (
        lambda: tree.stat(str(secret)),
        lambda: tree.stat(f"{tables}/../secret"),
        lambda: tree.stat(f"{tables}/link"),
        lambda: list(tree.list(str(tables))),
        lambda: tree.open(entry).__enter__(),
        lambda: tree.scratch(str(secret)).__enter__(),
        lambda: tree.publish(secret, f"{tables}/link", over=None),
        lambda: tree.delete(str(secret)),
    ):
        with pytest.raises(PermissionError, match="lies outside"):
            call()
    assert secret.exists()


def test_a_link_that_leads_in_a_circle_is_an_error(tables: Path) -> None:
    (tables / "a").mkdir()
    (tables / "a" / "up").symlink_to(tables)
    with pytest.raises(OSError, match="leads back"):
        list(LocalTree().list(str(tables)))
    (tables / "self").symlink_to(tables / "self")
    with pytest.raises(OSError, match="symbolic links"):
        LocalTree().stat(f"{tables}/self")


def test_a_link_to_nothing_is_an_error_where_files_are_listed(tables: Path) -> None:
    (tables / "a").symlink_to(tables / "nothing")
    assert LocalTree().stat(f"{tables}/a") is None
    with pytest.raises(UnusableError, match="leads to nothing"):
        list(LocalTree().list(str(tables)))


class Only:
    """Wants files of one ending, and no folder below the first."""

    def file(self, uri: str) -> bool:
        return uri.endswith(".csv")

    def folder(self, uri: str) -> bool:
        return False


def test_what_is_not_wanted_may_be_anything(tables: Path) -> None:
    (tables / "a.csv").write_bytes(b"")
    (tables / "nothing").symlink_to(tables / "nowhere")
    (tables / "self").symlink_to(tables / "self")
    (tables / "up").symlink_to(tables)
    os.mkfifo(tables / "pipe")
    assert [entry.uri for entry in LocalTree().list(str(tables), Only())] == [f"{tables}/a.csv"]
    (tables / "b.csv").symlink_to(tables / "b.csv")
    with pytest.raises(UnusableError, match="symbolic links"):
        list(LocalTree().list(str(tables), Only()))


def test_folders_that_lie_too_deep_in_one_another_are_an_error(tables: Path) -> None:
    (tables / "/".join("a" * MOST_FOLDERS)).mkdir(parents=True)
    assert list(LocalTree().list(str(tables))) == []
    (tables / "/".join("a" * (MOST_FOLDERS + 1))).mkdir()
    with pytest.raises(UnusableError, match="More than 200 folders"):
        list(LocalTree().list(str(tables)))


def test_what_is_neither_file_nor_folder_is_an_error(tables: Path) -> None:
    os.mkfifo(tables / "pipe")
    with pytest.raises(OSError, match="neither a file nor a folder"):
        LocalTree().stat(f"{tables}/pipe")
    with pytest.raises(OSError, match="neither a file nor a folder"):
        list(LocalTree().list(str(tables)))


def test_what_cannot_be_read_is_not_said_to_be_missing(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tables / "a").write_bytes(b"")
    for name in ("stat", "scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refused)
            with pytest.raises(PermissionError):
                list(LocalTree().list(str(tables)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refused)
        for call in (LocalTree().stat, LocalTree().is_folder):
            with pytest.raises(PermissionError):
                call(f"{tables}/a")


def test_a_file_that_grows_while_it_is_read_does_not_count(tables: Path) -> None:
    (tables / "a").write_bytes(b"one")
    tree = LocalTree()
    entry = tree.stat(f"{tables}/a")
    assert entry is not None
    with pytest.raises(ChangedError, match="3 bytes then and has 6 now"), tree.open(entry) as stream:
        assert stream.read() == b"one"
        with (tables / "a").open("ab") as more:
            more.write(b"two")


@pytest.mark.parametrize("attempt", [1, 2, 7])
def test_what_killed_attempts_of_an_owner_have_left_goes(tables: Path, attempt: int) -> None:
    tree = LocalTree()
    block = tree.scratch(f"{tables}/new/a.csv", owner="batch_1")
    left = block.__enter__()
    left.write_bytes(b"left by a process that was killed")
    with tree.scratch(f"{tables}/new/a.csv", owner="batch_1", attempt=attempt) as path:
        assert not left.exists()
        assert path.parent == tables / "new"
        assert path.name.startswith(".")
    assert list((tables / "new").iterdir()) == []


def test_an_owner_that_wakes_up_late_writes_into_nothing_that_was_published(tables: Path) -> None:
    tree, uri = LocalTree(), f"{tables}/new/a.csv"
    with tree.scratch(uri, owner="batch_1") as first, first.open("wb") as late:
        late.write(b"the first half")
        with tree.scratch(uri, owner="batch_1", attempt=2) as second:
            second.write_bytes(b"whole")
            tree.publish(second, uri, over=None)
        late.write(b" and the second")
        late.flush()
    assert Path(uri).read_bytes() == b"whole"


def test_an_owner_that_wakes_up_late_publishes_nothing_of_what_its_next_attempt_is_writing(tables: Path) -> None:
    tree, uri = LocalTree(), f"{tables}/new/a.csv"
    with tree.scratch(uri, owner="batch_1", attempt=1) as first:
        first.write_bytes(b"whole")
        with tree.scratch(uri, owner="batch_1", attempt=2) as second:
            second.write_bytes(b"the first ha")
            with pytest.raises(FileNotFoundError):
                tree.publish(first, uri, over=None)
            assert tree.stat(uri) is None
            with tree.scratch(uri, owner="batch_1", attempt=1):
                assert second.exists()


def test_a_file_that_changed_before_it_was_opened_is_not_given_at_all(tables: Path) -> None:
    (tables / "a").write_bytes(b"one")
    entry = LocalTree().stat(f"{tables}/a")
    (tables / "a").write_bytes(b"longer")
    assert entry is not None
    with pytest.raises(ChangedError), LocalTree().open(entry):
        pytest.fail("The block was entered.")
