"""Uploaded files and the result files that batches left: their records, not their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Text,
    and_,
    cast,
    exists,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.models import LIVING, BatchStatus
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches, files

FILE_ID: Final = re.compile(r"file-[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class StoredFile:
    id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    storage_key: str
    created_at: float
    expires_at: float | None


_COLUMNS = [files.c[name] for name in StoredFile.__annotations__]


def insert_file(connection: Connection, database: Database, team: str, stored: StoredFile) -> None:
    """Notes a file in a transaction of the caller's.

    ``created_at`` becomes the store's time and ``expires_at`` moves along: what counts is how far after ``created_at``
    it lies, so that a caller need not know the store's clock.
    """
    now = connection.execute(select(database.now())).scalar_one()
    expires_at = None if stored.expires_at is None else now + stored.expires_at - stored.created_at
    values = vars(stored) | {"created_at": now, "expires_at": expires_at}
    connection.execute(insert(files).values(team=team, **values))


def held_file(
    connection: Connection, database: Database, team: str, file_id: str, *, param: str = "file_id"
) -> StoredFile:
    """The file, which cannot be deleted before the caller's transaction ends."""
    query = _living(database, team, file_id).with_for_update(read=True)
    return _found(connection.execute(query).first(), file_id, param)


def hold_sources(connection: Connection, database: Database, team: str, dataset: Mapping[str, Any] | None) -> None:
    """Holds the uploaded files that a dataset is of, in the same way."""
    for file_id in _uploaded(dataset):
        held_file(connection, database, team, file_id, param="dataset.source")


def _uploaded(dataset: Mapping[str, Any] | None) -> Iterator[str]:
    source = (dataset or {}).get("source", [])
    return (place for place in ([source] if isinstance(source, str) else source) if FILE_ID.fullmatch(place))


def reads(file_id: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Whether a batch is of a file: its request file, or one that its dataset names."""
    named = cast(batches.c.dataset, Text).contains(file_id)  # ids are random: what has one in it means that file
    return or_(batches.c.input_file_id == file_id, named)


def in_use(file_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a batch that has not ended is of a file."""
    return exists().where(batches.c.status.in_(LIVING), reads(file_id))


class Files:
    """The files of all teams; every look that a client causes names one team.

    A file that was deleted or has expired is there for nobody but the planner of a batch that was accepted before.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, team: str, stored: StoredFile) -> StoredFile:
        """Notes a file as :func:`insert_file` does, and gives it with its times."""
        with self._database.writing() as connection:
            insert_file(connection, self._database, team, stored)
        return self.stored(stored.id)

    def get(self, team: str, file_id: str, *, param: str = "file_id") -> StoredFile:
        with self._database.reading() as connection:
            return _found(connection.execute(_living(self._database, team, file_id)).first(), file_id, param)

    def stored(self, file_id: str) -> StoredFile:
        """The record as it was stored, whether or not the file has expired or was deleted since."""
        with self._database.reading() as connection:
            row = connection.execute(select(*_COLUMNS).where(files.c.id == file_id)).first()
        return _found(row, file_id, "file_id")

    def page(
        self,
        team: str,
        *,
        after: str | None = None,
        limit: int,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> list[StoredFile]:
        """One page by time of creation, beginning behind the file ``after``.

        That file may be gone by now: whoever deletes what a page shows goes on from there.
        """
        query = select(*_COLUMNS).where(files.c.team == team, _alive(self._database))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        place = tuple_(files.c.created_at, files.c.id)
        with self._database.reading() as connection:
            if after is not None:
                last = self._place(connection, team, after)
                query = query.where(place < last if order == "desc" else place > last)
            columns = [column.desc() if order == "desc" else column for column in (files.c.created_at, files.c.id)]
            rows = connection.execute(query.order_by(*columns).limit(limit)).all()
        return [StoredFile(**row._mapping) for row in rows]

    def delete(self, team: str, file_id: str) -> StoredFile:
        """Marks the file as deleted. Raises :class:`ConflictError` while a batch is still to read it."""
        with self._database.writing() as connection:
            # Locked before the look at the batches, so that a submit that holds the file is seen or comes too late.
            row = connection.execute(_living(self._database, team, file_id).with_for_update()).first()
            stored = _found(row, file_id, "file_id")
            _check_unused(connection, file_id)
            connection.execute(update(files).where(files.c.id == file_id).values(deleted_at=self._database.now()))
        return stored

    def _place(self, connection: Connection, team: str, file_id: str) -> Any:
        query = select(files.c.created_at, files.c.id).where(files.c.id == file_id, files.c.team == team)
        row = connection.execute(query).first()
        if row is None:
            raise _no_such_file(file_id, "after")
        return tuple_(row.created_at, row.id)


def _alive(database: Database) -> ColumnElement[bool]:
    return and_(files.c.deleted_at.is_(None), or_(files.c.expires_at.is_(None), files.c.expires_at > database.now()))


def _living(database: Database, team: str, file_id: str) -> Select[Any]:
    return select(*_COLUMNS).where(files.c.id == file_id, files.c.team == team, _alive(database))


def _found(row: Row[Any] | None, file_id: str, param: str) -> StoredFile:
    if row is None:
        raise _no_such_file(file_id, param)
    return StoredFile(**row._mapping)


def _check_unused(connection: Connection, file_id: str) -> None:
    query = select(batches.c.id).where(batches.c.status == BatchStatus.VALIDATING, reads(file_id))
    batch_id = connection.execute(query.limit(1)).scalar()
    if batch_id is not None:
        raise ConflictError(
            f"File {file_id} is still to be read by batch {batch_id}, which is validating. Nothing was deleted. "
            "Try again once the batch is in progress, or cancel it first.",
            code="file_in_use",
            param="file_id",
        )


def _no_such_file(file_id: str, param: str) -> NotFoundError:
    shown = file_id if len(file_id) <= 64 else f"{file_id[:64]}…"
    return NotFoundError(
        f"No such file: {shown}. It was never stored here, was deleted or has expired.",
        code="file_not_found",
        param=param,
    )
