"""`batch-llm token …` on the store of a service that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.store.tokens import TokenRecord
from tests.conftest import RunningService
from tests.test_cli import CommandLine, batch_llm

__all__ = ["batch_llm"]


def record_of(service: RunningService, name: str) -> TokenRecord:
    [record] = [record for record in service.state.tokens.all() if record.name == name]
    return record


def test_a_token_is_shown_once_and_works_until_it_is_revoked(service: RunningService, batch_llm: CommandLine) -> None:
    made = batch_llm("token", "create", "--team", "red", "--name", "reader", "--scope", "read")
    token = made.stdout.strip()
    assert (made.returncode, len(token) > 40) == (0, True)
    assert token not in made.stderr
    record = record_of(service, "reader")
    assert (record.team, record.scopes, record.all_teams) == ("red", (Scope.READ,), False)
    assert record.id in made.stderr
    assert batch_llm("list", **{TOKEN_VARIABLE: token}).returncode == 0
    refused = batch_llm("cancel", "batch_x", **{TOKEN_VARIABLE: token})
    assert (refused.returncode, "needs a token with the scope submit" in refused.stderr) == (1, True)
    assert "is revoked" in batch_llm("token", "revoke", record.id).stderr
    assert "not one of this service's" in batch_llm("list", **{TOKEN_VARIABLE: token}).stderr
    revoked = record_of(service, "reader").revoked_at
    batch_llm("token", "revoke", record.id)
    assert revoked is not None
    assert record_of(service, "reader").revoked_at == revoked


def test_the_list_shows_every_token_and_nothing_that_could_be_used(
    service: RunningService, batch_llm: CommandLine
) -> None:
    token = batch_llm("token", "create", "--name", "[b]x", "--scope", "worker", "--all-teams").stdout.strip()
    shown = batch_llm("token", "list", COLUMNS="80").stdout
    record = record_of(service, "[b]x")
    assert (token in shown, service.token in shown, token[-5:] in shown) == (False, False, False)
    for word in (record.id, "[b]x", "worker", token[-4:], "default (workers: all teams)", "first"):
        assert word in shown


def test_the_first_token_has_all_scopes_and_serves_all_teams(service: RunningService) -> None:
    record = record_of(service, "first")
    assert (record.team, record.scopes, record.all_teams) == ("default", tuple(Scope), True)
    assert record.last_four == service.token[-4:]


def test_a_first_token_that_could_be_guessed_is_refused(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "nineteen characters")
    with pytest.raises(InvalidRequestError, match=r"has 19 characters.* at least 20"):
        ServiceState.open(settings)
    monkeypatch.setenv(TOKEN_VARIABLE, "a word of twenty-two c")
    state = ServiceState.open(settings)
    assert state.tokens.access_of("a word of twenty-two c") is not None
    state.database.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "--name", "x", "--scope", "read", "--all-teams"], "goes with --scope worker"),
        (["create", "--name", "x", "--scope", "root"], "is not one of"),
        (["create", "--name", "x"], "Missing option '--scope'"),
        (["create", "--name", " ", "--scope", "read"], "printable characters"),
        (["create", "--name", "x", "--scope", "read", "--team", "../x"], "letters, digits"),
        (["revoke", "token-nope"], "No such token: token-nope. Nothing was revoked."),
        (["list", "--home", "/nowhere"], "There is no store"),
    ],
)
def test_what_is_wrong_with_a_command_is_a_sentence(batch_llm: CommandLine, arguments: list[str], says: str) -> None:
    done = batch_llm("token", *arguments)
    assert done.returncode in (1, 2)
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_command_on_the_wrong_home_makes_no_store(batch_llm: CommandLine, tmp_path: Path) -> None:
    assert batch_llm("token", "list", "--home", str(tmp_path)).returncode == 2
    assert not (tmp_path / "store.sqlite").exists()


def test_serve_takes_roots_and_limits_for_teams(
    batch_llm: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_batch_llm.service import app

    started: list[ServiceSettings] = []
    monkeypatch.setattr(app, "serve", started.append)
    given = ["--team-root", f"red={tmp_path}", "--team-root", "red=s3://lake/red", "--max-body-bytes", "1000"]
    assert batch_llm("serve", *given, "--max-part-bytes", "2000", "--spare-bytes", "0").returncode == 0
    [settings] = started
    assert settings.team_roots == {"red": (str(tmp_path), "s3://lake/red")}
    limits = settings.limits
    assert (limits.body_bytes, limits.part_bytes, limits.spare_bytes) == (1000, 2000, 0)
    for wrong, says in ((f"{tmp_path}", "is not of the form"), ("red=/nowhere", "is not a folder")):
        assert says in " ".join(batch_llm("serve", "--team-root", wrong).stderr.replace("│", " ").split())
