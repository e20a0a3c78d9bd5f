"""Where a command finds the store."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from airflow_batch_llm.settings import DATABASE_URL_VARIABLE


def without_password(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """Refuses a password that stands in the command itself."""
    given = context.get_parameter_source(parameter.name or "")
    if value is not None and given is not None and given.name == "COMMANDLINE" and _has_password(value):
        raise typer.BadParameter(
            "It has a password in it, which every user of this machine could read in the list of its processes. "
            f"Set {DATABASE_URL_VARIABLE} instead, or keep the password in PGPASSWORD or ~/.pgpass. "
            "Change the password if others may have seen it."
        )
    return value


def _has_password(url: str) -> bool:
    try:
        split = urlsplit(url)
        return bool(split.password) or "password" in parse_qs(split.query)
    except ValueError:
        return True


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar=DATABASE_URL_VARIABLE,
        callback=without_password,
        help="Where the store is: postgresql://user@host/database. A password goes into the variable, not here: "
        "every user of a machine sees its commands. [default: SQLite below --home]",
    ),
]
