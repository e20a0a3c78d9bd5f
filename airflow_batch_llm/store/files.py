"""Uploaded files and the result files that batches left: their records, not their bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update

from airflow_batch_llm.errors import NotFoundError
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import files


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


class Files:
    """The files of all teams; every look names one team."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, team: str, stored: StoredFile) -> StoredFile:
        """Notes a file; ``created_at`` becomes the store's time."""
        with self._database.writing() as connection:
            values = vars(stored) | {"created_at": self._database.now()}
            connection.execute(insert(files).values(team=team, **values))
        return self.get(team, stored.id)

    def get(self, team: str, file_id: str, *, param: str = "file_id") -> StoredFile:
        with self._database.reading() as connection:
            row = connection.execute(
                select(*_COLUMNS).where(files.c.id == file_id, files.c.team == team, files.c.deleted_at.is_(None))
            ).first()
        if row is None:
            raise NotFoundError(f"No such file: {file_id}.", code="file_not_found", param=param)
        return StoredFile(**row._mapping)

    def delete(self, team: str, file_id: str) -> StoredFile:
        stored = self.get(team, file_id)
        with self._database.writing() as connection:
            connection.execute(update(files).where(files.c.id == file_id).values(deleted_at=self._database.now()))
        return stored
