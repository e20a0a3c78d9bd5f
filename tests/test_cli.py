"""The command line, as a process, against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.settings import HOME_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker


def batch_llm(service: RunningService, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {HOME_VARIABLE: str(service.settings.home), URL_VARIABLE: service.url, "COLUMNS": "200"}
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "airflow_batch_llm", *arguments],
        cwd=service.data_root,
        env={**inherited, **own, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def batch_id(service: RunningService) -> str:
    pq.write_table(pa.table({"a": ["x", "y"]}), service.data_root / "s.parquet")
    done = batch_llm(service, "submit", "s.parquet", "t.parquet", "--model", "m", "--prompt", "{a}", "--key", "k")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_table_is_submitted_followed_listed_and_read(service: RunningService, batch_id: str) -> None:
    service.plan()
    AnsweringWorker(service).work()
    service.assemble()
    watched = batch_llm(service, "watch", batch_id)
    assert (watched.returncode, "2 rows answered, 0 failed" in watched.stderr) == (0, True)
    rows = [json.loads(line) for line in batch_llm(service, "results", batch_id).stdout.splitlines()]
    assert [row["llm_output"] for row in rows] == ["answer 0", "answer 1"]
    assert json.loads(batch_llm(service, "status", batch_id).stdout)["status"] == "completed"
    assert batch_id in batch_llm(service, "list").stdout


def test_a_cancelled_batch_ends_the_watch_with_code_2(service: RunningService, batch_id: str) -> None:
    assert "cancelled" in batch_llm(service, "cancel", batch_id).stdout
    watched = batch_llm(service, "watch", batch_id)
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
    service: RunningService, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    done = batch_llm(service, *arguments, **environment)
    assert done.returncode in (1, 2)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
