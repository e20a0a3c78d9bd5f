"""The connection to the store: one code path for SQLite and Postgres, and the store's own clock.

Transactions are READ COMMITTED on Postgres, and SQLite has one writer at a time, so what is only safe with a lock says
so. Locks are always taken in one order, so that no two transactions wait for each other: names (see
:meth:`Database.lock_name`), then batches, then files and index files, then chunks, then duties, then workers.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, Connection, Double, bindparam, text
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as AllTakenError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from airflow_batch_llm.errors import InvalidRequestError, NoAnswerError
from airflow_batch_llm.store.engines import file_lock, open_engine

log = logging.getLogger(__name__)

MOST_TRIES: Final = 5
"""How often a transaction is tried that the database breaks off for the sake of another one."""
TRY_PAUSE_SECONDS: Final = 0.05
_FOR_ANOTHER: Final = frozenset({"40001", "40P01"})
"""SQLSTATE: serialization failure, deadlock. Nothing was written, and the same again may well succeed."""

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class StoreTroubleError(NoAnswerError):
    """The store cannot be used now (it is away, its disk is full, its file is locked or damaged); the call may be made
    again.

    As a rule nothing was written. Only where the connection broke in the moment of the commit nobody knows.
    """


class StoreConflictError(StoreTroubleError):
    """The database broke a transaction off for the sake of another one. Nothing was written."""


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
        self._engine = open_engine(url)

    def migrate(self) -> None:
        """Brings the tables to this version's shape. Of several processes one does, and the others wait for it."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self.alone("migrate"), _translated(), self._engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def now(self) -> ColumnElement[float]:
        """The store's time as an SQL expression, which may be kept: it is the time when its statement is executed."""
        return bindparam(None, callable_=self._clock, type_=Double(), unique=True) if self._clock else _StoreNow()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that may write; on SQLite it is the only one from its first statement on."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view that writes nothing and waits for nobody."""
        options: dict[str, Any] = {"only_reads": True}
        if self._postgres:
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with _translated(), self._engine.connect().execution_options(**options) as connection:
            yield connection

    def lock_name(self, connection: Connection, *names: str) -> None:
        """Keeps every other transaction that asks for one of the names waiting until this one has ended.

        For what has no row yet that could be locked. On SQLite a writing transaction is alone anyway.
        """
        if self._postgres:
            for number in sorted(map(_lock_number, names)):
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """For the length of the block no other process is in a block of that name on this store.

        It may hold several transactions. It ends with its process, however that dies.
        """
        if not self._postgres:
            with file_lock(self.url, name):
                yield
            return
        with _translated(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET lock_timeout = 0"))  # a migration of a large store takes a while
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": _lock_number(name)})
            try:
                yield
            finally:
                connection.invalidate()  # its session ends, and its lock with it

    def close(self) -> None:
        self._engine.dispose()

    @property
    def _postgres(self) -> bool:
        return self._engine.dialect.name == "postgresql"


def tried_again(verb: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """For a verb of the store that is one transaction: it is done again where the database broke it off for another."""

    @functools.wraps(verb)
    def trying(*arguments: _Given.args, **named: _Given.kwargs) -> _Result:
        for number in range(1, MOST_TRIES):
            try:
                return verb(*arguments, **named)
            except StoreConflictError as error:
                log.warning("tried %s %d times: %s", verb.__qualname__, number, error)
                time.sleep(TRY_PAUSE_SECONDS * number)
        return verb(*arguments, **named)

    return trying


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise InvalidRequestError(
            f"A value of this call cannot be stored: {_said(error)}. Nothing was written.", code="invalid_value"
        ) from error
    except (OperationalError, InterfaceError) as error:
        raise _trouble(error) from error
    except AllTakenError as error:
        raise StoreTroubleError("The store cannot be used: all connections to it are taken.") from error
    except DBAPIError as error:
        damaged = type(error) is DatabaseError  # and no kind of it: the file is none of SQLite's, or not any more
        if not (damaged or error.connection_invalidated):
            raise
        raise _trouble(error) from error


def _trouble(error: DBAPIError) -> StoreTroubleError:
    kind = StoreConflictError if getattr(error.orig, "sqlstate", None) in _FOR_ANOTHER else StoreTroubleError
    return kind(f"The store cannot be used: {_said(error)}.")


def _said(error: DBAPIError) -> str:
    """The first line of what the driver says; the others are hints for who is at its console."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error.orig).__name__


def _lock_number(name: str) -> int:
    """Postgres takes a lock on a number of 64 bits; two names that shared one would only wait for each other."""
    return int.from_bytes(hashlib.sha256(f"batch-llm {name}".encode()).digest()[:8], signed=True)
