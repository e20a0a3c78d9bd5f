"""Who works, and on which models."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from airflow_batch_llm.errors import ConflictError, LeaseLostError, NotFoundError
from airflow_batch_llm.store.database import Database, tried_again
from airflow_batch_llm.store.locks import lock_batches
from airflow_batch_llm.store.pools import Pool, serves
from airflow_batch_llm.store.tables import attempts, chunks, worker_models, workers
from airflow_batch_llm.worker_wire import Registration

ALIVE_SECONDS: Final = 90.0
"""A worker that has not called for this long no longer counts as serving its models. It calls at least every
heartbeat, so three times the longest silence that a lease allows."""


@dataclass(frozen=True)
class ServedBy:
    model: str
    endpoints: list[str]
    workers: int
    since: float


class Workers:
    """The workers that registered."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @tried_again
    def register(self, pool: Pool, registration: Registration) -> str:
        """Notes a worker and gives its id.

        Leases of an earlier worker of that name end: it was restarted. Raises :class:`ConflictError` if a living
        worker serves one of the models with another engine identity, for then equal rows could get unequal answers.
        A worker of one team yields to those of all teams, so that no team can keep the shared ones out.
        """
        worker_id = f"worker-{uuid.uuid4().hex}"
        now = self._database.now()
        with self._database.writing() as connection:
            # Two workers that register at once must see each other's engine identity.
            self._database.lock_name(
                connection,
                f"worker {pool.team} {registration.name}",
                *{f"model {served.model}" for served in registration.models},
            )
            self._retire(connection, pool, registration.name)
            for served in registration.models:
                self._check_identity(connection, pool, served.model, served.engine_identity, registration.name)
                if pool.all_teams:
                    self._dismiss(connection, served.model, served.engine_identity)
            connection.execute(
                insert(workers).values(
                    id=worker_id,
                    team=pool.team,
                    all_teams=pool.all_teams,
                    name=registration.name,
                    version=registration.version,
                    server=registration.server,
                    registered_at=now,
                    last_seen_at=now,
                    gone=False,
                )
            )
            connection.execute(
                insert(worker_models),
                [{"worker_id": worker_id, **served.model_dump()} for served in registration.models],
            )
        return worker_id

    def saw(self, pool: Pool, worker_id: str, *, gone: bool = False) -> None:
        """Notes that a worker of the pool called (or, with ``gone``, took its leave)."""
        with self._database.writing() as connection:
            noted = connection.execute(
                update(workers)
                .where(workers.c.id == worker_id, pool.has_worker(), workers.c.gone.is_(False))
                .values(last_seen_at=self._database.now(), gone=gone)
            )
        if noted.rowcount == 0:
            raise NotFoundError(
                f"Worker {worker_id} is not registered, or another worker registered under its name since. "
                "It must register again.",
                code="worker_unknown",
            )

    def check_attempt(self, pool: Pool, chunk_id: int, attempt: int) -> None:
        """Raises :class:`LeaseLostError` for an attempt that no worker of the pool began, as if it had never been."""
        query = (
            select(attempts.c.chunk_id)
            .join(workers, workers.c.id == attempts.c.worker_id)
            .where(attempts.c.chunk_id == chunk_id, attempts.c.attempt == attempt, pool.has_worker())
        )
        with self._database.reading() as connection:
            if connection.execute(query).first() is None:
                raise LeaseLostError(chunk_id, attempt)

    def served(self, team: str) -> list[ServedBy]:
        """The models that living workers serve for a team."""
        query = (
            select(
                worker_models.c.model,
                worker_models.c.endpoint,
                func.count().label("workers"),
                func.min(workers.c.registered_at).label("since"),
            )
            .join(workers, workers.c.id == worker_models.c.worker_id)
            .where(self._alive(), serves(team))
            .group_by(worker_models.c.model, worker_models.c.endpoint)
            .order_by(worker_models.c.model, worker_models.c.endpoint)
        )
        found: dict[str, ServedBy] = {}
        with self._database.reading() as connection:
            for model, endpoint, count, since in connection.execute(query):
                known = found.get(model, ServedBy(model, [], 0, since))
                found[model] = ServedBy(
                    model, [*known.endpoints, endpoint], max(known.workers, count), min(known.since, since)
                )
        return list(found.values())

    def identity_of(self, team: str, model: str) -> str | None:
        """The engine identity last registered under a model's name by a worker that serves the team."""
        with self._database.reading() as connection:
            return connection.scalar(
                select(worker_models.c.engine_identity)
                .join(workers, workers.c.id == worker_models.c.worker_id)
                .where(worker_models.c.model == model, serves(team))
                .order_by(workers.c.registered_at.desc())
                .limit(1)
            )

    def body_fields(self, team: str, endpoint: str) -> list[str] | None:
        """What the engine of the team's worker that registered last for an endpoint says that a body may have."""
        with self._database.reading() as connection:
            fields: list[str] | None = connection.scalar(
                select(worker_models.c.body_fields)
                .join(workers, workers.c.id == worker_models.c.worker_id)
                .where(worker_models.c.endpoint == endpoint, serves(team))
                .order_by(workers.c.registered_at.desc())
                .limit(1)
            )
        return fields

    def _alive(self) -> ColumnElement[bool]:
        return (workers.c.gone.is_(False)) & (workers.c.last_seen_at > self._database.now() - ALIVE_SECONDS)

    def _retire(self, connection: Connection, pool: Pool, name: str) -> None:
        same = select(workers.c.id).where(pool.has_worker(), workers.c.name == name, workers.c.gone.is_(False))
        held = (chunks.c.state == "leased", chunks.c.worker_id.in_(same))
        lock_batches(connection, connection.scalars(select(chunks.c.batch_id).where(*held).distinct()).all())
        connection.execute(update(chunks).where(*held).values(lease_until=self._database.now()))
        connection.execute(update(workers).where(pool.has_worker(), workers.c.name == name).values(gone=True))

    def _dismiss(self, connection: Connection, model: str, identity: str | None) -> None:
        """The workers of single teams that serve another engine under the name have to register again."""
        other = select(worker_models.c.worker_id).where(
            worker_models.c.model == model, worker_models.c.engine_identity.is_distinct_from(identity)
        )
        connection.execute(
            update(workers).where(workers.c.id.in_(other), workers.c.all_teams.is_(False)).values(gone=True)
        )

    def _check_identity(self, connection: Connection, pool: Pool, model: str, identity: str | None, name: str) -> None:
        other = connection.execute(
            select(workers.c.name, workers.c.all_teams, worker_models.c.engine_identity)
            .join(workers, workers.c.id == worker_models.c.worker_id)
            .where(
                worker_models.c.model == model,
                self._alive(),
                pool.yields_to(),
                worker_models.c.engine_identity.is_distinct_from(identity),
            )
            .limit(1)
        ).first()
        if other:
            shared = other.all_teams and not pool.all_teams
            who = "a worker of all teams" if shared else f"worker {other.name}"
            raise ConflictError(
                f"Worker {name} serves model {model!r} with engine identity {identity}, but {who} serves "
                f"{other.engine_identity} under the same name: equal rows would get unequal answers. The worker was "
                "not registered. "
                "Give one of the two models another name (--served-model-name), or stop the other worker.",
                code="engine_identity_mismatch",
            )
