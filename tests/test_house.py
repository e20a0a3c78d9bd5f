"""The project's own rules: style, types and the direction of imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detect_secrets import SecretsCollection
from detect_secrets.core import baseline

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


def test_no_file_holds_what_looks_like_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not (ROOT / ".git").exists():
        pytest.skip("This is no clone: what belongs to the repository is not known.")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [name for name in names if name and (ROOT / name).is_file()]
    known = baseline.load(baseline.load_from_file(".secrets.baseline"))
    found = SecretsCollection()
    found.scan_files(*files)
    assert json.dumps((found - known).json(), indent=2) == "{}"


def test_every_test_that_the_table_of_the_wire_names_is_there() -> None:
    tests = ROOT / "tests"
    named = set(re.findall(r"\btest_[a-z0-9_]+\b(?!\.py)", (tests / "WIRE.md").read_text()))
    written = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in tests.rglob("test_*.py"))))
    assert len(named) > 50
    assert named - written == set()
