"""The files in which a team's known answers are found, and the batches that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.locks import keep_batches, lock_batch_whole
from airflow_batch_llm.store.tables import index_batches, index_files

MOST_AT_ONCE: Final = 64
"""How many files are merged at most in one go."""


@dataclass(frozen=True)
class IndexFile:
    id: int
    team: str
    storage_key: str
    level: int
    rows: int
    bytes: int


_COLUMNS: Final = [index_files.c[name] for name in IndexFile.__annotations__]


class IndexFiles:
    """The index files of all teams."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, team: str, storage_key: str, *, batch_id: str, rows: int, size: int, seconds: float) -> None:
        """Notes a file with the results of one batch, which may be used for some time. Twice said, the last counts."""
        now = self._database.now()
        with self._database.writing() as connection:
            lock_batch_whole(connection, batch_id)  # a merge at the same moment would bring the last file's line back
            connection.execute(delete(index_batches).where(index_batches.c.batch_id == batch_id))
            file_id = self._insert(connection, team, storage_key, level=0, rows=rows, size=size)
            connection.execute(
                insert(index_batches).values(file_id=file_id, batch_id=batch_id, expires_at=now + seconds)
            )

    def living(self, team: str) -> tuple[list[IndexFile], list[str]]:
        """The files that have results which may be used, and the batches that those are of."""
        lines = select(index_batches.c.batch_id).join(index_files).where(index_files.c.team == team, self._alive())
        with self._database.reading() as connection:
            files = connection.execute(select(*_COLUMNS).where(index_files.c.team == team, self._used())).all()
            return [IndexFile(*file) for file in files], list(connection.scalars(lines.distinct()))

    def batches_in(self, files: Sequence[int]) -> list[str]:
        """The batches of which these files have results that may be used."""
        query = select(index_batches.c.batch_id).where(index_batches.c.file_id.in_(files), self._alive()).distinct()
        with self._database.reading() as connection:
            return list(connection.scalars(query))

    def to_merge(self, team: str, count: int) -> list[IndexFile]:
        """The files of the lowest level that has ``count`` of them; none if no level has."""
        full = select(index_files.c.level).where(index_files.c.team == team).group_by(index_files.c.level)
        full = full.having(func.count() >= count).order_by(index_files.c.level).limit(1)
        with self._database.reading() as connection:
            level = connection.scalar(full)
            if level is None:
                return []
            query = select(*_COLUMNS).where(index_files.c.team == team, index_files.c.level == level)
            return [
                IndexFile(*file) for file in connection.execute(query.order_by(index_files.c.id).limit(MOST_AT_ONCE))
            ]

    def replace(self, files: Sequence[IndexFile], storage_key: str, *, rows: int, size: int) -> bool:
        """Puts one file in the place of several, in one stroke; False if one of those is not there any more."""
        ids = [file.id for file in files]
        with self._database.writing() as connection:
            lines_of = select(index_batches.c.batch_id).where(index_batches.c.file_id.in_(ids))
            # First of all: a batch that is deleted now takes its lines along, and none may come back in the new file.
            keep_batches(connection, connection.scalars(lines_of.distinct()).all())
            if len(_locked(connection, index_files.c.id.in_(ids))) != len(ids):
                return False
            team, level = files[0].team, files[0].level
            new = self._insert(connection, team, storage_key, level=level + 1, rows=rows, size=size)
            kept = select(func.max(index_batches.c.expires_at), index_batches.c.batch_id)
            kept = kept.where(index_batches.c.file_id.in_(ids), self._alive()).group_by(index_batches.c.batch_id)
            lines = [
                {"file_id": new, "batch_id": batch, "expires_at": ends}
                for ends, batch in connection.execute(kept).all()
            ]
            connection.execute(delete(index_batches).where(index_batches.c.file_id.in_(ids)))
            if lines:
                connection.execute(insert(index_batches), lines)
            connection.execute(delete(index_files).where(index_files.c.id.in_(ids)))
        return True

    def drop_empty(self, team: str) -> list[str]:
        """Forgets the files without a result that may be used, and gives the storage keys of them."""
        with self._database.writing() as connection:
            found = _locked(connection, index_files.c.team == team, ~self._used())
            ids = [file_id for file_id, _ in found]
            connection.execute(delete(index_batches).where(index_batches.c.file_id.in_(ids)))
            connection.execute(delete(index_files).where(index_files.c.id.in_(ids)))
        return [key for _, key in found]

    def forget(self, batch_id: str) -> None:
        """Takes a batch's results out of use."""
        with self._database.writing() as connection:
            forget_results(connection, batch_id)

    def _alive(self) -> ColumnElement[bool]:
        return index_batches.c.expires_at > self._database.now()

    def _used(self) -> ColumnElement[bool]:
        return exists().where(index_batches.c.file_id == index_files.c.id, self._alive())

    def _insert(self, connection: Connection, team: str, key: str, *, level: int, rows: int, size: int) -> int:
        values = {"team": team, "storage_key": key, "level": level, "rows": rows, "bytes": size}
        made = connection.execute(insert(index_files).values(**values, created_at=self._database.now()))
        return int(made.inserted_primary_key[0])  # type: ignore[index]


def forget_results(connection: Connection, batch_id: str) -> None:
    """Takes a batch's results out of use, in a transaction of the caller's."""
    lock_batch_whole(connection, batch_id)
    connection.execute(delete(index_batches).where(index_batches.c.batch_id == batch_id))


def _locked(connection: Connection, *which: ColumnElement[bool]) -> list[tuple[int, str]]:
    """Ids and storage keys of index files that nobody else merges or drops until the transaction ends."""
    query = select(index_files.c.id, index_files.c.storage_key).where(*which).order_by(index_files.c.id)
    return [(row.id, row.storage_key) for row in connection.execute(query.with_for_update(of=index_files))]
