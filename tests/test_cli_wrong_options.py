"""Whatever is wrong with a command's options, its environment or its files: a sentence, a code, and nothing started."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_batch_llm.cli.common import TOKEN_FILE
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.embedded import Embedded
from airflow_batch_llm.errors import InvalidRequestError, UnauthorizedError
from airflow_batch_llm.service import app
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import HOME_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, ServiceSettings
from airflow_batch_llm.worker import process
from airflow_batch_llm.worker.service_link import ServiceLink
from tests.test_cli import CommandLine, Done

TOKEN = "bl-0123456789-0123456789-0123456789"
WORK = ["work", "--model", "m", "--vllm", "true"]
SUBMIT = ["submit", "s.csv", "t.csv", "--model", "m", "--prompt", "x"]


def told(done: Done, says: str) -> None:
    """A sentence that a user can do something with."""
    shown = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert done.returncode in (1, 2), shown
    assert says in shown
    assert not [word for word in ("Traceback", 'File "', "Error:") if word in shown], shown


@pytest.fixture
def batch_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Commands where no service runs and none has been."""
    return CommandLine(tmp_path / "home", "http://127.0.0.1:9", tmp_path, monkeypatch, capsys)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the commands would have started."""
    names: list[str] = []

    def instead_of(name: str) -> Callable[[object], None]:
        return lambda _: names.append(name)

    monkeypatch.setattr(app, "serve", instead_of("serve"))
    monkeypatch.setattr(process, "work", instead_of("work"))
    monkeypatch.setattr(Embedded, "run", instead_of("up"))
    return names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["work", "--model", "m", "--vllm", "/nope/vllm"], "'/nope/vllm' is no command of this machine"),
        (["work", "--model", "m", "--vllm", ""], "is no command of this machine"),
        (["work", "--model", "m", "--vllm", "/etc/passwd"], "is no command of this machine"),
        (["work", "--model", "m", "--vllm", "/tmp"], "is no command of this machine"),
        (["work", "--model", "m", "--vllm", "'"], "cannot be cut into words"),
        (["up", "--model", "m", "--vllm", "/nope/vllm"], "'/nope/vllm' is no command of this machine"),
        (["up", "--model", "m", "--vllm", "true", "--engine-args", "'"], "cannot be cut into words"),
        (["up", "--model", "m", "--vllm", "true", "--home", "/proc/x"], "/proc/x of --home cannot be made or written"),
        (["up", "--model", "m", "--vllm", "true", "--port", "0"], "Invalid value for '--port'"),
        (["up", "--model", "m", "--vllm", "true", "--data-root", "/nope"], "is not a folder"),
        ([*WORK, "--engine-args", "'"], "cannot be cut into words"),
        ([*WORK, "--name", "n" * 300], "has to be a name for a folder"),
        ([*WORK, "--name", "../../evil"], "has to be a name for a folder"),
        ([*WORK, "--name", ".."], "has to be a name for a folder"),
        ([*WORK, "--name", "a\nb"], "has to be a name for a folder"),
        ([*WORK, "--endpoint", "notaurl"], "'notaurl' is not an address like http"),
        ([*WORK, "--endpoint", ""], "is not an address like http"),
        ([*WORK, "--endpoint", "ftp://x"], "is not an address like http"),
        ([*WORK, "--endpoint", "http://x:99999"], "is not an address like http"),
        ([*WORK, "--url", "notaurl"], "is not an address like http"),
        ([*WORK, "--url", "http://a:1,b:2"], "'b:2' is not an address like http"),
        ([*WORK, "--max-num-seqs", "0"], "Invalid value for '--max-num-seqs'"),
        ([*WORK, "--home", "/proc/x"], "There is no token"),
        (["serve", "--home", "/proc/x"], "/proc/x of --home cannot be made or written"),
        (["serve", "--home", "/etc/passwd"], "/etc/passwd of --home cannot be made or written"),
        (["serve", "--scratch", "/proc/nope"], "/proc/nope of --scratch cannot be made or written"),
        (["serve", "--port", "99999"], "Invalid value for '--port'"),
        (["serve", "--port", "-1"], "Invalid value for '--port'"),
        (["serve", "--storage", "ftp://x"], "--storage 'ftp://x' is not of the form s3://bucket"),
        (["serve", "--storage", "s3://"], "--storage 's3://' is not of the form s3://bucket"),
        (["serve", "--storage", "s3://lake//x"], "is not of the form s3://bucket"),
        (["doctor", "--storage", "ftp://x"], "There is no store"),
        (["serve", "--data-root", "s3://"], "The data root 's3://' is not of the form s3://bucket"),
        (["serve", "--data-root", "s3://lake/../x"], "is not of the form s3://bucket"),
        (["serve", "--data-root", "ftp://x"], "is not a folder"),
        (["serve", "--team-root", "red=s3://"], "The data root 's3://' is not of the form s3://bucket"),
        (["up", "--model", "m", "--vllm", "true", "--data-root", "s3://"], "is not of the form s3://bucket"),
        (["serve", "--keep-days", "inf"], "Invalid value for '--keep-days'"),
        (["serve", "--keep-days", "nan"], "Invalid value for '--keep-days'"),
        (["serve", "--record-days", "1e300"], "Invalid value for '--record-days'"),
        (["serve", "--grace-days", "nan"], "Invalid value for '--grace-days'"),
        (["serve", "--reuse-days", "9" * 30], "Invalid value for '--reuse-days'"),
        (["serve", "--gpu-hour-price", "nan"], "Invalid value for '--gpu-hour-price'"),
        (["serve", "--gpu-hour-price", "inf"], "Invalid value for '--gpu-hour-price'"),
        (["serve", "--api-input-price", "-1"], "Invalid value for '--api-input-price'"),
        (["serve", "--api-output-price", "nan"], "Invalid value for '--api-output-price'"),
        (["serve", "--currency", ""], "a short word or sign, of 1 to 8 characters"),
        (["serve", "--currency", "Kreuzer and Gulden"], "a short word or sign, of 1 to 8 characters"),
        (["up", "--model", "m", "--vllm", "true", "--currency", "E\nR"], "a short word or sign, of 1 to 8 characters"),
        (["serve", "--max-body-bytes", "0"], "Invalid value for '--max-body-bytes'"),
        (["doctor", "--grace-days", "inf"], "Invalid value for '--grace-days'"),
        (["doctor", "--home", "/proc/x"], "There is no store at /proc/x"),
        (["list", "--limit", "0"], "Invalid value for '--limit'"),
        (["list", "--url", "http://[::1"], "is not an address like http"),
        (["list", "--home", "/dev/null"], "There is no token"),
        (["status"], "Missing argument"),
        (["nope"], "No such command 'nope'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_refused_before_anything_is_started(
    batch_llm: CommandLine, started: list[str], arguments: list[str], says: str
) -> None:
    told(batch_llm(*arguments), says)
    assert started == []


def test_right_options_start_what_they_name(batch_llm: CommandLine, started: list[str], tmp_path: Path) -> None:
    assert batch_llm(*WORK, "--name", "gpu 1 (ü)", "--home", str(tmp_path), **{TOKEN_VARIABLE: TOKEN}).returncode == 0
    elsewhere = ["work", "--model", "m", "--vllm", "/nope", "--endpoint", "http://h:1/v1"]
    assert batch_llm(*elsewhere, **{TOKEN_VARIABLE: TOKEN}).returncode == 0
    roots = ["--storage", "s3://lake/own/", "--data-root", "s3://lake", "--data-root", "s3://sea/a b/c/"]
    assert batch_llm("serve", "--keep-days", "0.5", "--port", "0", *roots).returncode == 0
    assert batch_llm("up", "--model", "m", "--vllm", "true").returncode == 0
    assert started == ["work", "work", "serve", "up"]
    assert (tmp_path / "workers" / "gpu 1 (ü)").is_dir()


def test_up_hands_its_prices_on_to_its_service(batch_llm: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    both: list[Embedded] = []
    served: list[ServiceSettings] = []
    monkeypatch.setattr(Embedded, "run", lambda self: both.append(self))
    monkeypatch.setattr(app, "serve", served.append)
    prices = ["--gpu-hour-price", "2.5", "--api-input-price", "0.1", "--api-output-price", "0", "--currency", "€"]
    assert batch_llm("up", "--model", "m", "--vllm", "true", *prices).returncode == 0
    assert batch_llm("serve", *both[0]._serve_arguments()).returncode == 0
    (settings,) = served
    assert (settings.gpu_hour_price, settings.api_input_price, settings.api_output_price) == (2.5, 0.1, 0.0)
    assert settings.currency == "€"
    assert ServiceSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize("token", ["tökén-0123456789-0123456789", f"{TOKEN}\nX: y", "\x7f" * 30], ids=ascii)
@pytest.mark.parametrize("arguments", [["list"], SUBMIT, WORK, ["watch", "batch_x"]], ids=lambda value: value[0])
def test_a_token_that_no_header_can_carry_is_refused(batch_llm: CommandLine, arguments: list[str], token: str) -> None:
    told(batch_llm(*arguments, **{TOKEN_VARIABLE: token}), "The token has characters that no token has")


@pytest.mark.parametrize("made", [BatchClient, ServiceLink])
def test_no_client_sends_such_a_token(made: type[BatchClient] | type[ServiceLink]) -> None:
    with pytest.raises(UnauthorizedError, match="Nothing was sent"):
        made("http://127.0.0.1:9", "tökén")


def test_a_service_makes_no_first_token_that_nobody_could_send(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "a token of twenty-two ¢")
    with pytest.raises(InvalidRequestError, match="no HTTP header can carry"):
        ServiceState.open(settings)
    assert not settings.token_path.exists()


def test_a_token_file_that_is_not_text_is_no_token(batch_llm: CommandLine, tmp_path: Path) -> None:
    (tmp_path / TOKEN_FILE).write_bytes(b"\xff\xfe\x00")
    told(batch_llm("list", **{HOME_VARIABLE: str(tmp_path)}), "holds no token: it is not text")


def no_database(path: Path) -> None:
    path.write_bytes(b"This is no database. " * 500)


def torn(path: Path) -> None:
    """Its first page whole, its tables gone: as a disk leaves it that lost what was written."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("damage", [no_database, torn])
@pytest.mark.parametrize("command", [["serve"], ["token", "list"], ["doctor"]], ids=" ".join)
def test_a_damaged_store_is_told_as_one(
    batch_llm: CommandLine, tmp_path: Path, migrated_store: Path, command: list[str], damage: Callable[[Path], None]
) -> None:
    store = Path(shutil.copy(migrated_store, tmp_path / "store.sqlite"))
    damage(store)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(store).execute("SELECT * FROM batches").fetchall()
    told(batch_llm(*command, "--home", str(tmp_path)), "The store cannot be used: ")


def test_an_environment_is_checked_like_options(batch_llm: CommandLine) -> None:
    told(batch_llm("list", **{URL_VARIABLE: "notaurl"}), "is not an address like http")
