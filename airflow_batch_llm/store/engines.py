"""How each kind of database is opened, and what its connections are told before they are used."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from airflow_batch_llm.errors import InvalidRequestError

BUSY_SECONDS: Final = 30
"""How long a writer waits for another one; a transaction here takes milliseconds."""
FORGOTTEN_SECONDS: Final = 60
"""How long a transaction may stand still with all that it has locked, as that of a frozen process does."""
CONNECT_SECONDS: Final = 5
POOL_SIZE: Final = 8
MOST_CONNECTIONS: Final = 20
"""A service answers on 16 threads and looks at rows on 4, few of which are with the store at a time."""
LOWER: Final = "lower_of_all"
"""The function of SQLite here that knows small letters beyond ASCII's, as its own does not."""
_DRIVER: Final = "postgresql+psycopg"


def open_engine(url: str) -> Engine:
    """An engine for ``sqlite:///path`` or ``postgresql://…``. Raises :class:`InvalidRequestError` for anything else."""
    parsed = _parsed(url)
    return _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgres(parsed)


@contextmanager
def file_lock(url: str, name: str) -> Iterator[None]:
    """A lock among the processes of one host that use a SQLite file; it ends with its process."""
    path = Path(f"{make_url(url).database}.{name.replace(' ', '-')}.lock")
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, NoSuchModuleError):
        parsed = make_url("other://")
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername=_DRIVER)
    if parsed.drivername not in ("sqlite", _DRIVER):
        raise InvalidRequestError(  # without the URL, which may hold a password
            "The database's URL is none that a service can use: it begins with postgresql:// (or with sqlite:///). "
            "Nothing was started.",
            code="invalid_database_url",
            param="database_url",
        )
    return parsed


def _postgres(url: URL) -> Engine:
    # Pinged before use: after a restart of Postgres the first call already gets a connection that lives.
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=MOST_CONNECTIONS - POOL_SIZE,
        pool_timeout=BUSY_SECONDS,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "batch-llm"},
        hide_parameters=True,  # what a statement was given, prompts among it, never stands in an error or a log
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        connection.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
        connection.execute(f"SET idle_in_transaction_session_timeout = '{FORGOTTEN_SECONDS}s'")
        connection.autocommit = False

    return engine


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=MOST_CONNECTIONS - POOL_SIZE,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling starts them late; BEGIN is said below instead.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.create_function(LOWER, 1, _lower, deterministic=True)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get("only_reads", False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine
