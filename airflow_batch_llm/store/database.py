"""The connection to the store: one code path for SQLite and Postgres, and the store's own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, Connection, Double, Engine, create_engine, event, literal
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

BUSY_SECONDS: Final = 30
"""How long a writer waits for another one; a transaction here takes milliseconds."""


class StoreTroubleError(Exception):
    """The store cannot be used now (it is away, its disk is full, its file is locked). Nothing was written."""


class _StoreNow(FunctionElement[float]):
    """Seconds since 1970, as the database's clock has it."""

    type = Double()
    inherit_cache = True


@compiles(_StoreNow, "sqlite")
def _sqlite_now(element: _StoreNow, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_StoreNow, "postgresql")
def _postgres_now(element: _StoreNow, compiler: Any, **options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


class Database:
    """Opens transactions on the store. ``clock`` replaces the store's clock, for tests of time."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        self.url = url
        self._clock = clock
        self._engine = _sqlite(url) if url.startswith("sqlite") else _postgres(url)

    def migrate(self) -> None:
        """Brings the tables to this version's shape."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self._engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def now(self) -> ColumnElement[float]:
        """The store's time as an SQL expression."""
        return literal(self._clock(), Double) if self._clock else _StoreNow()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that may write; on SQLite it is the only one from its first statement on."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view that writes nothing and, on SQLite, waits for nobody."""
        with _translated(), self._engine.connect().execution_options(only_reads=True) as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise StoreTroubleError(f"The store cannot be used: {error.orig}.") from error


def _postgres(url: str) -> Engine:
    # What a statement was given (prompts, among them) never stands in an error or a log.
    return create_engine(url, pool_pre_ping=True, hide_parameters=True)


def _sqlite(url: str) -> Engine:
    connect = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=connect, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling starts them late; BEGIN is said below instead.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get("only_reads", False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine
