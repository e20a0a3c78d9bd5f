"""Over a hundred broken inputs, each with what its user is told: refused, failed or an error row, and never silence."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.conftest import RunningService
from tests.service.broken_inputs import cases, told

UNREADABLE: Final = ("submit", "source_unreadable")
EXPECTED: Final = {
    "missing": ("submit", "source_not_found"),
    "no bytes": ("submit", "empty_source"),
    "no bytes .parquet": UNREADABLE,
    "noise": UNREADABLE,
    "noise .csv": ("submit", "invalid_utf8"),
    "cut in half": UNREADABLE,
    "no rows": ("submit", "empty_source"),
    "a column twice": ("submit", "duplicate_column"),
    "an output's name": ("submit", "column_clash"),
    "no such column": ("submit", "unknown_column"),
    "one row is not UTF-8": ("row", "invalid_utf8"),
    "one row is not UTF-8 .parquet": ("plan", "invalid_utf8"),
    "one row is malformed": ("row", "invalid_json_line"),
    "one row is malformed .parquet": ("submit", "column_not_supported"),
    "one row is malformed .csv": ("row", "ragged_line"),
    "one row is malformed .csv.gz": ("row", "ragged_line"),
    "one row is malformed .csv.zst": ("row", "ragged_line"),
    "another format": UNREADABLE,
    "another format .csv": ("submit", "invalid_utf8"),
    "an empty folder": ("submit", "source_not_found"),
    "a link that leads out": ("submit", "place_not_allowed"),
    "the target itself": ("submit", "target_is_source"),
    "changed since": ("plan", "source_changed"),
    "gone since": ("plan", "source_not_found"),
}


@pytest.mark.parametrize(("name", "ending"), list(cases()))
def test_a_broken_input_is_told_of_in_a_sentence(service: RunningService, name: str, ending: str) -> None:
    found = told(service, name, ending)
    assert (found.where, found.code) == EXPECTED.get(f"{name} .{ending}", EXPECTED[name]), found.message
    assert re.fullmatch(r"[A-Z].*[^. ]\.", found.message, re.DOTALL), found.message
    if found.where == "submit":
        assert "Nothing was submitted." in found.message


def test_there_are_more_than_a_hundred() -> None:
    assert len(list(cases())) > 100
