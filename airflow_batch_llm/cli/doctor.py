"""The command that checks a service's store and storage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from airflow_batch_llm.cli.common import DEFAULT_HOME, MOST_DAYS, Home, app, err, explained, finite, out, real
from airflow_batch_llm.cli.database_url import DatabaseUrl
from airflow_batch_llm.settings import ServiceSettings

if TYPE_CHECKING:
    from airflow_batch_llm.service.doctor import Check


@app.command()
def doctor(
    home: Home = DEFAULT_HOME,
    database_url: DatabaseUrl = None,
    storage: Annotated[
        str | None, typer.Option(help="As the service was given it: s3://bucket/folder. [default: below --home]")
    ] = None,
    grace_days: Annotated[
        float,
        typer.Option(
            min=0,
            max=MOST_DAYS,
            callback=finite,
            help="What is younger may be about to get its record, and is not looked at.",
        ),
    ] = 1,
    fix: Annotated[
        bool, typer.Option("--fix", help="Remove objects that nothing needs. Changes nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check a service's store against its storage, on its own machine, while it runs or not.

    Exit code 0 if all is well, 1 if something is wrong.
    """
    from airflow_batch_llm.service.doctor import Doctor
    from airflow_batch_llm.store.database import StoreTroubleError

    settings = ServiceSettings(
        home=real(home),
        data_roots=(),
        database_url=database_url,
        storage_url=storage,
        grace_seconds=round(grace_days * 86_400),
    )
    with explained():
        try:
            checks = Doctor.open(settings).examine(fix=fix)
            well = _print_json(checks) if as_json else _print_table(checks)
        except (OSError, StoreTroubleError) as error:
            err.print(f"The examination broke off: {error}", markup=False, highlight=False, soft_wrap=True)
            well = False
    sys.exit(0 if well else 1)


def _print_json(checks: Iterator[Check]) -> bool:
    from airflow_batch_llm.service.doctor import report

    found = report(checks)
    out.print_json(data=found)
    return bool(found["ok"])


def _print_table(checks: Iterator[Check]) -> bool:
    table = Table("check", "", "what was found")
    wrong = []
    for check in checks:
        err.print(f"looked at {check.name}", style="dim", highlight=False)
        table.add_row(check.name, "ok" if check.ok else f"{check.wrong:,} wrong", check.note or check.means)
        if not check.ok:
            wrong.append(check)
    out.print(table)
    for check in wrong:
        out.print(f"\n{check.name}: it should be that {check.means}", highlight=False, markup=False, soft_wrap=True)
        for finding in check.findings:
            out.print(f"  {finding['which']}: {finding['says']}", highlight=False, markup=False, soft_wrap=True)
        if check.wrong > len(check.findings):
            out.print(f"  … and {check.wrong - len(check.findings):,} more", highlight=False)
    return not wrong
