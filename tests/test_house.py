"""The project's own rules: style, types and the direction of imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff format"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports"], id="import contracts"),
    ],
)
def test_the_house_is_in_order(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_test_that_the_table_of_the_wire_names_is_there() -> None:
    tests = ROOT / "tests"
    named = set(re.findall(r"\btest_[a-z0-9_]+\b(?!\.py)", (tests / "WIRE.md").read_text()))
    written = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in tests.rglob("test_*.py"))))
    assert len(named) > 50
    assert named - written == set()
