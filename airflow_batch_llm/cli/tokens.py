"""The commands for tokens. They work on the service's own store, on a machine that reaches it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from airflow_batch_llm import clock
from airflow_batch_llm.cli.common import DEFAULT_HOME, Home, app, err, explained, out, real
from airflow_batch_llm.cli.database_url import DatabaseUrl
from airflow_batch_llm.cli.tables import listing, show
from airflow_batch_llm.models import DEFAULT_TEAM, Scope
from airflow_batch_llm.settings import ServiceSettings

if TYPE_CHECKING:
    from airflow_batch_llm.store.tokens import TokenRecord, Tokens

tokens: Final = typer.Typer(no_args_is_help=True, help="Make, show and revoke tokens, in the service's store.")
app.add_typer(tokens, name="token")


@tokens.command()
def create(
    name: Annotated[str, typer.Option(help="Who or what will use it, to be known by in the list.")],
    scope: Annotated[list[Scope], typer.Option(help="What it allows. Repeatable; admin is all of the others.")],
    team: Annotated[str, typer.Option(help="Whose things it opens.")] = DEFAULT_TEAM,
    all_teams: Annotated[
        bool, typer.Option("--all-teams", help="A worker with it does the chunks of all teams.")
    ] = False,
    home: Home = DEFAULT_HOME,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token and print it: this once, for the store keeps its hash alone."""
    _check_given(name, team)
    if all_teams and not {Scope.WORKER, Scope.ADMIN} & set(scope):
        raise typer.BadParameter("--all-teams is about the chunks of a worker: it goes with --scope worker.")
    with _store(home, database_url) as held:
        from airflow_batch_llm.store.tokens import new_token

        token = new_token()
        record = held.add(token, name=name, team=team, scopes=scope, all_teams=all_teams)
    _tell(f"{record.id}: {_allows(record)} of {_whose(record)}. It is shown only now:")
    out.print(token, highlight=False, soft_wrap=True)


@tokens.command("list")
def list_tokens(home: Home = DEFAULT_HOME, database_url: DatabaseUrl = None) -> None:
    """Show all tokens, without what could be used of them."""
    with _store(home, database_url) as held:
        found = held.all()
    table = listing("id", "team", "name", "scopes", "ends in", "created", "revoked", whole=("ends in",))
    for record in found:
        shown = (record.id, _whose(record), record.name, _allows(record), record.last_four)
        table.add_row(*map(Text, (*shown, _day(record.created_at), _day(record.revoked_at))))
    show(table)


@tokens.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="An id from `batch-llm token list`.")],
    home: Home = DEFAULT_HOME,
    database_url: DatabaseUrl = None,
) -> None:
    """End a token's life: the next call with it is refused."""
    with _store(home, database_url) as held:
        record = held.revoke(token_id)
    _tell(f"{record.id} ({record.name}, team {record.team}) is revoked.")


@contextmanager
def _store(home: Path, database_url: str | None) -> Iterator[Tokens]:
    """The tokens of a store that is there: a command with a wrong --home must not make an empty one."""
    from airflow_batch_llm.store.database import Database, StoreTroubleError
    from airflow_batch_llm.store.tokens import Tokens

    settings = ServiceSettings(home=real(home), data_roots=(), database_url=database_url)
    path = settings.home / "store.sqlite"
    if database_url is None and not path.is_file():
        raise typer.BadParameter(
            f"There is no store {path}. The service makes it at its first start; give its --home or --database-url."
        )
    database = Database(settings.store_url)
    try:
        with explained():
            database.migrate()
            yield Tokens(database)
    except StoreTroubleError as error:
        _tell(f"{error} Nothing was changed.")
        raise typer.Exit(1) from error
    finally:
        database.close()


def _check_given(name: str, team: str) -> None:
    if not name.strip() or len(name) > 128 or not name.isprintable():
        raise typer.BadParameter("--name has to be a text of 1 to 128 printable characters.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", team):
        raise typer.BadParameter(
            f"--team {team!r} has to be letters, digits, dots, dashes and underscores, at most 128."
        )


def _tell(text: str) -> None:
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _allows(record: TokenRecord) -> str:
    return " ".join(record.scopes)


def _whose(record: TokenRecord) -> str:
    return f"{record.team} (workers: all teams)" if record.all_teams else record.team


def _day(at: float | None) -> str:
    return "" if at is None else f"{clock.from_unix(int(at)):%Y-%m-%d %H:%M}"
