"""Who may call: tokens, known by their hash only."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, func, insert, select

from airflow_batch_llm.models import DEFAULT_TEAM
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import tokens


def _hashed(token: str) -> str:
    # A token is 256 random bits, so one round of SHA-256 is as good as a slow hash.
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of the service; each belongs to a team."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any(self) -> bool:
        with self._database.reading() as connection:
            return bool(connection.scalar(select(func.count()).select_from(tokens)))

    def add(self, token: str, *, name: str, team: str = DEFAULT_TEAM) -> None:
        with self._database.writing() as connection:
            self._add(connection, token, name, team)

    def team_of(self, token: str) -> str | None:
        """The team that a token speaks for; None where it is unknown or revoked."""
        with self._database.reading() as connection:
            return connection.scalar(
                select(tokens.c.team).where(tokens.c.sha256 == _hashed(token), tokens.c.revoked_at.is_(None))
            )

    def _add(self, connection: Connection, token: str, name: str, team: str) -> None:
        connection.execute(
            insert(tokens).values(sha256=_hashed(token), team=team, name=name, created_at=self._database.now())
        )
