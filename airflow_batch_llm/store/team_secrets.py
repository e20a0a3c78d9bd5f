"""A secret per team, under which the contents of its rows are hashed."""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy import Connection, insert, select

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import team_secrets

BYTES: Final = 32


class TeamSecrets:
    """Made when first asked for, and never shown: without it a row's key tells nothing of its content."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, team: str) -> bytes:
        with self._database.reading() as connection:
            found = self._found(connection, team)
        return found or self._made(team)

    def _made(self, team: str) -> bytes:
        with self._database.writing() as connection:
            self._database.lock_name(connection, f"secret {team}")
            found = self._found(connection, team)
            if found is not None:
                return found
            secret = secrets.token_bytes(BYTES)
            connection.execute(insert(team_secrets).values(team=team, secret=secret))
            return secret

    def _found(self, connection: Connection, team: str) -> bytes | None:
        found: bytes | None = connection.scalar(select(team_secrets.c.secret).where(team_secrets.c.team == team))
        return found
