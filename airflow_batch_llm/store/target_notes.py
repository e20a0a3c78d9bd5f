"""Which files a batch was about to make its target: noted before, so that one without a manifest still has an owner."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import or_, select, update

from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.duties import Duty, DutyLostError, check_held
from airflow_batch_llm.store.locks import lock_batch
from airflow_batch_llm.store.tables import batches


class TargetNotes:
    """The SHA-256 of each file that an attempt at a batch was about to publish as its single target."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @tried_again
    def note(self, duty: Duty, sha256: str) -> None:
        """Notes a file before it is published. Raises :class:`DutyLostError` for an attempt that was overtaken."""
        with self._database.writing() as connection:
            batch = lock_batch(connection, duty.batch_id)
            if batch is None:
                raise DutyLostError(f"Batch {duty.batch_id} was deleted before its target stood.")
            check_held(connection, duty)
            noted = batch.target_hashes or []
            if sha256 not in noted:
                hashes = [*noted, sha256]
                connection.execute(update(batches).where(batches.c.id == batch.id).values(target_hashes=hashes))

    def of(self, team: str, names: Collection[str]) -> dict[str, list[str]]:
        """What each of a team's batches under these keys and series has noted, by its id."""
        query = select(batches.c.id, batches.c.target_hashes).where(
            batches.c.team == team, or_(batches.c.key.in_(names), batches.c.series.in_(names))
        )
        with self._database.reading() as connection:
            return {batch_id: hashes or [] for batch_id, hashes in connection.execute(query).tuples()}
