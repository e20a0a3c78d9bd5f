"""Batches that go on only as long as somebody watches them: the others are paused, and go on with the next look."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import ColumnElement, select, update

from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.store.changes import IDS_PER_QUERY, id_slices
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.pauses import PAUSABLE, Pauses, hold_chunks
from airflow_batch_llm.store.tables import batches

NOTED_SECONDS: Final = 10.0
"""How often it is noted that a batch is watched, however often somebody looks at it."""


class Watching:
    """Notes the looks at batches that have a ``pause_unwatched_after``; the others cost a look at the index."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pauses = Pauses(database)

    def saw(self, team: str, batch_ids: Collection[str]) -> None:
        """Somebody of the team watches these batches now: those that were paused since nobody did go on."""
        for ids in id_slices(self._to_note(team, batch_ids)):
            for batch_id in self._noted(ids):
                self._pauses.resume_unwatched(batch_id)

    def pause_due(self) -> None:
        """Pauses the batches that nobody has watched for as long as they were given."""
        with self._database.reading() as connection:
            found = connection.scalars(select(batches.c.id).where(*self._due())).all()
        for batch_id in found:
            self._pause(batch_id)

    @tried_again
    def _pause(self, batch_id: str) -> None:
        with self._database.writing() as connection:
            paused = connection.execute(
                update(batches).where(batches.c.id == batch_id, *self._due()).values(paused=PauseReason.UNWATCHED)
            )
            if paused.rowcount:  # nobody has looked meanwhile
                hold_chunks(connection, batch_id)

    def _due(self) -> tuple[ColumnElement[bool], ...]:
        unwatched = batches.c.unwatched_at <= self._database.now()
        return batches.c.status.in_(PAUSABLE), batches.c.paused.is_(None), unwatched

    def _to_note(self, team: str, batch_ids: Collection[str]) -> list[str]:
        """In an order that is everybody's, so that no two wait for each other."""
        last = batches.c.unwatched_at - batches.c.pause_unwatched_after
        stale = (last < self._database.now() - NOTED_SECONDS) | (batches.c.paused == PauseReason.UNWATCHED)
        query = select(batches.c.id).where(batches.c.team == team, batches.c.status.in_(PAUSABLE), stale)
        if len(batch_ids) <= IDS_PER_QUERY:
            query = query.where(batches.c.id.in_(batch_ids))
        with self._database.reading() as connection:
            return sorted(set(batch_ids).intersection(connection.scalars(query)))

    @tried_again
    def _noted(self, batch_ids: list[str]) -> list[str]:
        """Those of the batches that are paused since nobody watched them."""
        with self._database.writing() as connection:
            those = (batches.c.id.in_(batch_ids), batches.c.status.in_(PAUSABLE))
            locked = select(batches.c.id, batches.c.paused).where(*those).order_by(batches.c.id)
            found = connection.execute(locked.with_for_update(key_share=True)).tuples().all()
            until = self._database.now() + batches.c.pause_unwatched_after
            connection.execute(update(batches).where(*those).values(unwatched_at=until))
            return [batch_id for batch_id, paused in found if paused == PauseReason.UNWATCHED]
