"""The command line against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.cli import main
from airflow_batch_llm.settings import HOME_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class CommandLine:
    """Runs the command in this process: a process of its own for each call would take most of the tests' time."""

    def __init__(self, service: RunningService, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._service, self._patch, self._capture = service, patch, capture

    def __call__(self, *arguments: str, **environment: str) -> Done:
        own = {HOME_VARIABLE: str(self._service.settings.home), URL_VARIABLE: self._service.url, "COLUMNS": "200"}
        with self._patch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.delenv(TOKEN_VARIABLE, raising=False)
            patch.chdir(self._service.data_root)
            patch.setattr(sys, "argv", ["batch-llm", *arguments])
            for name, value in (own | environment).items():
                patch.setenv(name, value)
            main()
        return Done(int(ended.value.code or 0), *self._capture.readouterr())


@pytest.fixture
def batch_llm(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(service, monkeypatch, capsys)


@pytest.fixture
def batch_id(service: RunningService, batch_llm: CommandLine) -> str:
    pq.write_table(pa.table({"a": ["x", "y"]}), service.data_root / "s.parquet")
    done = batch_llm("submit", "s.parquet", "t.parquet", "--model", "m", "--prompt", "{a}", "--key", "k")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_table_is_submitted_followed_listed_and_read(
    service: RunningService, batch_llm: CommandLine, batch_id: str
) -> None:
    service.plan()
    AnsweringWorker(service).work()
    service.assemble()
    watched = batch_llm("watch", batch_id)
    assert (watched.returncode, "2 rows answered, 0 failed" in watched.stderr) == (0, True)
    rows = [json.loads(line) for line in batch_llm("results", batch_id).stdout.splitlines()]
    assert [row["llm_output"] for row in rows] == ["answer 0", "answer 1"]
    assert json.loads(batch_llm("status", batch_id).stdout)["status"] == "completed"
    assert batch_id in batch_llm("list").stdout


def test_a_cancelled_batch_ends_the_watch_with_code_2(
    service: RunningService, batch_llm: CommandLine, batch_id: str
) -> None:
    assert "cancelled" in batch_llm("cancel", batch_id).stdout
    watched = batch_llm("watch", batch_id)
    assert watched.returncode == 2
    assert "ended as cancelled" in watched.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["list"], {TOKEN_VARIABLE: "wrong"}, "not one of this service's"),
        (["list"], {URL_VARIABLE: "http://127.0.0.1:9"}, "cannot be reached"),
        (["list"], {HOME_VARIABLE: "/nowhere"}, "There is no token"),
        (["status", "batch_nope"], {}, "No such batch: batch_nope"),
        (["submit", "no.csv", "t.csv", "--model", "m", "--prompt", "x"], {}, "does not exist"),
        (["serve", "--data-root", "/nowhere"], {}, "is not a folder"),
        (
            ["submit", "s.csv", "t.csv", "--model", "m", "--prompt", "x", "--choice", "a"],
            {},
            "choices: List should have",
        ),
        (
            ["submit", "s.csv", "t.csv", "--model", "", "--prompt", "x", "--priority", "5000"],
            {},
            "model: String should",
        ),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_never_a_traceback(
    batch_llm: CommandLine, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    done = batch_llm(*arguments, **environment)
    assert done.returncode in (1, 2)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_command_is_a_process_that_ends_with_a_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_batch_llm", "list", "--home", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "There is no token" in done.stderr) == (2, True)
