"""Which files a batch was about to make its target: noted before, so that one without a manifest still has an owner."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, and_, not_, or_, select, tuple_, update

from airflow_batch_llm.models import ENDED
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.duties import Duty, DutyLostError, check_held
from airflow_batch_llm.store.locks import lock_batch
from airflow_batch_llm.store.tables import batches


class TargetNotes:
    """The SHA-256 of each file that an attempt at a batch was about to publish as its single target, or as the first
    file of its folder."""

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

    def replaced(
        self, batch_id: str, among: Collection[str], *, team: str, names: Collection[str], overwrite: bool
    ) -> set[str]:
        """Those of some batches whose files in a folder go once a batch has its manifest there.

        They are the older ones of its team's under these keys and series, and with ``overwrite`` all older ones that
        have ended. There are none where a newer batch has taken the folder over: what lies there may be that one's.
        """
        theirs: ColumnElement[bool] = and_(
            batches.c.team == team, or_(batches.c.key.in_(names), batches.c.series.in_(names))
        )
        if overwrite:
            theirs = or_(theirs, batches.c.status.in_(ENDED))
        with self._database.reading() as connection:
            batch = connection.execute(select(batches).where(batches.c.id == batch_id)).first()
            if batch is None or batch.superseded:
                return set()
            query = select(batches.c.id).where(batches.c.id.in_(among), _older_than(batch), theirs)
            return set(connection.scalars(query))

    def of(self, team: str, names: Collection[str]) -> dict[str, list[str]]:
        """What each of a team's batches under these keys and series has noted, by its id."""
        query = select(batches.c.id, batches.c.target_hashes).where(
            batches.c.team == team, or_(batches.c.key.in_(names), batches.c.series.in_(names))
        )
        with self._database.reading() as connection:
            return {batch_id: hashes or [] for batch_id, hashes in connection.execute(query).tuples()}


def _older_than(batch: Any) -> ColumnElement[bool]:
    """Generations under one key are counted; of others the store's clock says which came first."""
    same_key = and_(batches.c.team == batch.team, batches.c.key == batch.key)
    return or_(
        and_(same_key, batches.c.generation < batch.generation),
        and_(not_(same_key), tuple_(batches.c.created_at, batches.c.id) < tuple_(batch.created_at, batch.id)),
    )
