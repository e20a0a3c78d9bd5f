"""The command line against a real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.cli import common, main
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.settings import HOME_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE
from airflow_batch_llm.wire import Batch, BatchCreate, BatchList, Estimate, Progress, RequestCounts
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class CommandLine:
    """Runs the command in this process: a process of its own for each call would take most of the tests' time."""

    def __init__(
        self, home: Path, url: str, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self._home, self._url, self._folder = home, url, folder
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: str, **environment: str) -> Done:
        own = {HOME_VARIABLE: str(self._home), URL_VARIABLE: self._url, "COLUMNS": "200"}
        with self._patch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.delenv(TOKEN_VARIABLE, raising=False)
            patch.chdir(self._folder)
            patch.setattr(sys, "argv", ["batch-llm", *arguments])
            for console in (common.out, common.err):
                patch.setattr(console, "_width", None)  # else that of the moment in which it was made
            for name, value in (own | environment).items():
                patch.setenv(name, value)
            main()
        return Done(int(ended.value.code or 0), *self._capture.readouterr())


@pytest.fixture
def batch_llm(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    return CommandLine(service.settings.home, service.url, service.data_root, monkeypatch, capsys)


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


def test_a_batch_is_paused_shown_to_be_and_resumed(batch_llm: CommandLine, batch_id: str) -> None:
    assert batch_llm("pause", batch_id).stdout.strip() == f"{batch_id} is validating, paused"
    assert json.loads(batch_llm("status", batch_id).stdout)["paused"] == "requested"
    assert "validating, paused" in batch_llm("list").stdout
    assert batch_llm("resume", batch_id).stdout.strip() == f"{batch_id} is validating"
    assert "paused" not in batch_llm("list").stdout


def test_a_submit_takes_several_sources_a_format_and_a_schema(
    service: RunningService, batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _sent(monkeypatch)
    (service.data_root / "schema.json").write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
    done = batch_llm(
        *("submit", "one.parquet", "out/", "--source", "more/", "--source", "s3://lake/x*.csv", "--model", "m"),
        *("--prompt", "{a}", "--format", "csv", "--compression", "gzip", "--reuse", "never"),
        *("--output-schema", "schema.json", "--quarantine", "bad.csv"),
    )
    assert (done.returncode, done.stdout.strip()) == (0, "batch_1"), done.stderr
    [create] = sent
    root = service.data_root
    assert create.dataset is not None
    assert create.dataset.source == [f"{root}/one.parquet", f"{root}/more/", "s3://lake/x*.csv"]
    assert (create.dataset.target, create.dataset.quarantine) == (f"{root}/out/", f"{root}/bad.csv")
    assert (create.dataset.format, create.dataset.compression, create.reuse) == ("csv", "gzip", "never")
    assert create.dataset.output_schema is not None
    assert create.dataset.output_schema["properties"] == {"a": {"type": "string"}}


def test_a_submit_of_texts_to_embed_has_an_input(batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = _sent(monkeypatch)
    assert batch_llm("submit", "a.csv", "b.parquet", "--model", "m", "--prompt", "{a}", "--embed").returncode == 0
    [create] = sent
    assert create.endpoint == "/v1/embeddings"
    assert create.dataset is not None
    assert (create.dataset.input, create.dataset.messages) == ("{a}", [])


@pytest.mark.parametrize("as_json", [False, True])
def test_an_estimate_is_a_table_or_json_and_needs_no_target(
    as_json: bool, batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate = Estimate(
        rows=1000,
        rows_faulty=1,
        rows_duplicate=200,
        rows_reused=0,
        rows_asked=799,
        prompt_tokens=7990,
        tokens_from="tokenized sample",
        sample_rows=100,
        completion_tokens=799,
        cost=1.5,
    )
    sent = _sent(monkeypatch, status="completed", estimate=estimate)
    done = batch_llm("estimate", "a.csv", "--model", "m", "--prompt", "{a}", *(["--json"] if as_json else []))
    assert done.returncode == 0, done.stderr
    assert sent[0].dry_run
    if as_json:
        assert Estimate.model_validate_json(done.stdout) == estimate
    else:
        shown = " ".join(word for word in done.stdout.split() if word.isascii())  # however wide the terminal is
        assert "7,990 (10.0 a row, by a tokenized sample of 100 rows)" in shown
        assert "about 1.50" in done.stdout
        assert "GPU-seconds" not in done.stdout


def test_rows_are_counted_wherever_the_server_says_them(
    batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = RequestCounts(total=7, completed=4, failed=1)
    batch = _batch(request_counts=counts, progress=Progress(rows_duplicate=2, rows_reused=1))
    monkeypatch.setattr(BatchClient, "list", lambda _, **__: BatchList(data=[batch]))
    shown = batch_llm("list").stdout
    assert shown.split()[-7:] == ["batch_1", "in_progress", "5/7", "1", "1970-01-01", "00:00", "3"]
    ended = batch.model_copy(update={"status": BatchStatus.COMPLETED})
    monkeypatch.setattr(BatchClient, "get", lambda *_: ended)
    watched = batch_llm("watch", "batch_1").stderr
    assert "5/7" in watched
    assert "4 rows answered, 1 failed, 2 as equal rows of this batch, 1 as rows before" in " ".join(watched.split())


@pytest.mark.parametrize("width", [None, 80, 60])
@pytest.mark.parametrize("command", ["batches", "tokens"])
def test_no_list_cuts_what_it_shows(
    service: RunningService, batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str, width: int | None
) -> None:
    """A pipe (None) gets a line for each thing, however long; a terminal the ids in one piece, and the rest folded, as
    far as it has room to fold anything."""
    name = "batch_" + "0" * 32
    batch = _batch(id=name, request_counts=RequestCounts(total=1_000_000), model="a-model/of-a-long-name")
    monkeypatch.setattr(BatchClient, "list", lambda _, **__: BatchList(data=[batch]))
    monkeypatch.setattr(common.out, "_force_terminal", width is not None)
    if command == "tokens":
        [record] = service.state.tokens.all()
        name = record.id
    shown = batch_llm(*(["list"] if command == "batches" else ["token", "list"]), COLUMNS=str(width or 80)).stdout
    assert "…" not in shown
    [line] = [line for line in shown.splitlines() if name in line]
    if width == 80:
        assert all(len(line) <= width for line in shown.splitlines())
    else:
        assert {"1970-01-01", "0/1,000,000"} <= set(line.split()) or {"admin", "worker", "first"} <= set(line.split())
    assert width or command == "tokens" or batch.model in line.split()


def _batch(**fields: Any) -> Batch:
    return Batch.model_validate({"id": "batch_1", "endpoint": "", "created_at": 0, "status": "in_progress", **fields})


def _sent(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> list[BatchCreate]:
    """What the command submits from now on, to a service that takes anything."""
    sent: list[BatchCreate] = []

    def submit(_: BatchClient, create: BatchCreate) -> Batch:
        sent.append(create)
        return _batch(**fields)

    monkeypatch.setattr(BatchClient, "submit", submit)
    return sent


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
        (
            ["submit", "s.csv", "t.csv", "--model", "m", "--prompt", "x", "--embed", "--choice", "a"],
            {},
            "--choice does not go with --embed",
        ),
        (
            ["submit", "s.csv", "t.csv", "--model", "m", "--prompt", "x", "--output-schema", "none.json"],
            {},
            "The schema none.json cannot be read",
        ),
        (["submit", "s.csv", "t/", "--model", "m", "--prompt", "x", "--format", "orc"], {}, "format: Input should be"),
        (["estimate", "s.csv", "--model", "m", "--prompt", "x"], {}, "does not exist"),
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


@pytest.mark.parametrize("batch_id", ["../models", "..", ".", "%2e%2e/models", "x/results", "x?a=b", "#", "ü", ""])
@pytest.mark.parametrize("command", ["status", "cancel", "retry", "results"])
def test_an_id_is_one_piece_of_a_path_and_leads_to_no_other_call(
    service: RunningService, batch_llm: CommandLine, command: str, batch_id: str
) -> None:
    done = batch_llm(command, batch_id)
    assert done.returncode == 1
    assert re.search(r"No such batch: |/v1/batches/.*: (Not Found|Method not allowed)", done.stderr), done.stderr


def test_the_command_is_a_process_that_ends_with_a_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_batch_llm", "list", "--home", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "There is no token" in done.stderr) == (2, True)
