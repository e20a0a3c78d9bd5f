"""Which worker may do whose chunks: a worker serves the team of its token, or all teams where the token says so."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BindParameter, ColumnElement, and_, exists, or_

from airflow_batch_llm.store.tables import chunks, workers


@dataclass(frozen=True)
class Pool:
    """The workers of one team; with ``all_teams`` those that its token has serve all teams."""

    team: str
    all_teams: bool = False

    def has_worker(self) -> ColumnElement[bool]:
        """Whether a row of ``workers`` is one of the pool's: the one that a team shares is not the one of its own."""
        return and_(workers.c.team == self.team, workers.c.all_teams.is_(self.all_teams))

    def yields_to(self) -> ColumnElement[bool]:
        """Whether a row of ``workers`` has the first word on what a model's name means where this pool works."""
        shared = workers.c.all_teams.is_(True)
        return shared if self.all_teams else or_(shared, workers.c.team == self.team)


def serves(team: str) -> ColumnElement[bool]:
    """Whether a row of ``workers`` does the team's chunks."""
    return or_(workers.c.all_teams.is_(True), workers.c.team == team)


def may_be_done_by(worker_id: str | BindParameter[str]) -> ColumnElement[bool]:
    """Whether a row of ``chunks`` may be given to a worker."""
    return exists().where(
        workers.c.id == worker_id, or_(workers.c.all_teams.is_(True), workers.c.team == chunks.c.team)
    )
