"""Patterns of sources: what they match, whatever they are, and that none of them takes the service's time."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import source_files
from airflow_batch_llm.service.path_pattern import PathPattern
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.source_files import MOST_CHARACTERS, MOST_PLACES, SourceFinder
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.store.files import StoredFile
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService

PIECES = ["*", "**", "**/", "?", "/", "a", "b", ".csv", "\n", "ä", "[", "(", "+", "\\"]


@pytest.mark.parametrize(
    ("pattern", "matches", "not_matched"),
    [
        ("/d/*.csv", ["/d/a.csv", "/d/.csv", "/d/a\n.csv"], ["/d/x/a.csv", "/d/a.csv.gz", "/e/a.csv"]),
        ("/d/?.csv", ["/d/a.csv", "/d/ä.csv"], ["/d/ab.csv", "/d/.csv", "/d//.csv"]),
        ("/d/**/*.csv", ["/d/a.csv", "/d/x/a.csv", "/d/x/y/a.csv"], ["/d/x/a.txt", "/da.csv"]),
        ("/d/**", ["/d/a", "/d/x/a\n"], ["/d", "/e/a"]),
        ("/d/**a.csv", ["/d/a.csv", "/d/x/ba.csv"], ["/d/b.csv"]),
        ("/d/ds=*/p-?.csv", ["/d/ds=1/p-1.csv", "/d/ds=/p-1.csv"], ["/d/ds=1/x/p-1.csv", "/d/ds=1/p-11.csv"]),
        ("/d/**/x/**/*", ["/d/x/a", "/d/y/x/z/a"], ["/d/y/a"]),
        ("/d/[ab]+(.csv*", ["/d/[ab]+(.csv"], ["/d/a.csv"]),
        ("/d*/a", ["/d/a", "/d1/a"], ["/e/a"]),
    ],
)
def test_a_star_stays_in_its_folder_and_two_do_not(pattern: str, matches: list[str], not_matched: list[str]) -> None:
    found = PathPattern(pattern)
    assert [path for path in matches + not_matched if found.matches(path)] == matches


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(
    pattern=st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: "/" + "".join(pieces)),
    path=st.lists(st.sampled_from(["/", "a", "b", ".csv", "\n", "ä", "[", "*"]), max_size=8).map(
        lambda pieces: re.sub("//+", "/", "/" + "".join(pieces))
    ),
)
def test_a_pattern_matches_what_its_regular_expression_does(pattern: str, path: str) -> None:
    means = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    steps = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    expression = "".join(means.get(step, re.escape(step)) for step in steps)
    found = PathPattern(pattern)
    assert found.matches(path) == bool(re.fullmatch(expression, path, re.DOTALL))
    if found.matches(path):
        assert all(found.leads_below(path[:at]) for at, letter in enumerate(path) if letter == "/")


@pytest.mark.parametrize(
    "pattern",
    ["/" + "*a" * 2_000 + "Z", "/" + "**a" * 1_300 + "Z", "/" + "**/" * 1_300 + "Z", "/" + "?*" * 2_000 + "Z"],
)
@pytest.mark.parametrize("path", ["/" + "a" * 4_000, "/a" * 2_000])
def test_no_pattern_runs_for_ever(pattern: str, path: str) -> None:
    started = time.monotonic()
    assert not PathPattern(pattern).matches(path)
    assert time.monotonic() - started < 5  # a regular expression would not be done in this universe


@pytest.fixture
def finder(tmp_path: Path) -> SourceFinder:
    def uploaded(file_id: str) -> StoredFile:
        raise AssertionError(file_id)

    (tmp_path / "data").mkdir()
    return SourceFinder(Places((tmp_path / "data",)), LocalStorage(tmp_path / "storage"), uploaded)


def write(finder: SourceFinder, *names: str) -> None:
    for name in names:
        path = finder.places.roots[0] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\na\n")


def test_a_file_that_is_named_twice_ends_the_look_at_once(
    finder: SourceFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(finder, *(f"{number}.csv" for number in range(10)))
    monkeypatch.setattr(source_files, "MOST_NAMES", 25)
    with pytest.raises(InvalidRequestError, match=r"names .*0\.csv twice"):
        finder.find(["**/*.csv"] * 1_000)


def test_more_files_than_go_are_not_all_looked_at(finder: SourceFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    write(finder, *(f"{number}.csv" for number in range(20)))
    monkeypatch.setattr(source_files, "MOST_FILES", 5)
    monkeypatch.setattr(source_files, "MOST_NAMES", 10)
    with pytest.raises(InvalidRequestError, match="more files than the 5 that go"):
        finder.find("*.csv")


def test_what_patterns_may_look_through_has_a_limit_for_all_of_them(
    finder: SourceFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(finder, *(f"deep/{number}.csv" for number in range(10)))
    monkeypatch.setattr(source_files, "MOST_NAMES", 100)
    places = [f"**/{number}.csv" for number in range(10)]
    assert len(finder.find(places[:8])) == 8
    with pytest.raises(InvalidRequestError, match="more than 100 files and folders") as caught:
        finder.find(places)
    assert caught.value.code == "too_many_files"


def test_a_source_has_so_many_places_of_such_a_length_at_most(finder: SourceFinder) -> None:
    write(finder, "a.csv")
    with pytest.raises(InvalidRequestError, match="names 10,001 places, and at most 10,000 go"):
        finder.find(["missing.csv"] * (MOST_PLACES + 1))
    with pytest.raises(InvalidRequestError, match="is 4,097 characters long, and at most 4,096 go"):
        finder.find(["a.csv", "*" * (MOST_CHARACTERS + 1)])


def spoilt(finder: SourceFinder, how: str) -> str:
    """Puts something into a folder that no source can be read with; gives a part of its name as messages show it."""
    folder = finder.places.roots[0] / "d"
    write(finder, "d/a.csv", "d/e/b.csv")
    path = folder / f"bad.{how}.csv"
    if how == "pipe":
        os.mkfifo(path)
    elif how == "link to nothing":
        path.symlink_to(folder / "nothing")
    elif how == "link to itself":
        path.symlink_to(path)
    elif how == "circle":
        path.symlink_to(folder)
    else:
        (folder / "a.csv").rename(os.fsdecode(os.fsencode(folder) + b"/bad.\xff.csv"))
        write(finder, "d/a.csv")
        return "bad.\\xff.csv"
    return path.name


@pytest.mark.parametrize("how", ["pipe", "link to nothing", "link to itself", "circle", "name"])
def test_what_is_wrong_in_a_folder_is_named_and_a_pattern_can_leave_it_out(finder: SourceFinder, how: str) -> None:
    name = spoilt(finder, how)
    for source in ("d/", "d/**/*.csv", "d/bad*"):
        if (how, source) == ("circle", "d/bad*"):
            continue  # a folder is no match
        with pytest.raises(InvalidRequestError) as caught:
            finder.find(source)
        assert caught.value.code == ("invalid_file_name" if how == "name" else "source_not_usable")
        assert name in caught.value.message
        assert "Nothing was submitted." in caught.value.message
    for source, found in (("d/a*.csv", ["a.csv"]), ("d/?.csv", ["a.csv"]), ("d/e*/*.csv", ["b.csv"])):
        assert [Path(file.uri).name for file in finder.find(source)] == found


def test_what_a_user_has_to_mend_is_no_trouble_of_the_service(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 503 is what clients repeat."""
    root = service.data_root
    (root / "a.csv").write_text("text\na\n")
    os.mkfifo(root / "pipe.csv")
    (root / "locked").mkdir()
    really = os.scandir

    def scandir(path: Path) -> Any:  # whoever runs the tests may be one to whom nothing is locked
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for source, target, code, says in (
        ("pipe.csv", "t.csv", "source_not_usable", "pipe.csv cannot be read: This is neither a file nor a folder."),
        ("locked/", "t.csv", "place_not_readable", f"may not read {root}/locked: Permission denied."),
        ("a.csv", "pipe.csv", "target_not_usable", "This is neither a file nor a folder"),
    ):
        spec = DatasetSpec(source=source, target=target, messages=[Message(role="user", content="{text}")])
        with pytest.raises(InvalidRequestError) as caught:
            service.client.submit(BatchCreate(dataset=spec, model="m"))
        assert caught.value.code == code
        assert says in caught.value.message
