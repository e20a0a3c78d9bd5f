"""Which batches have changed since they were last seen, at the cost of one short query for hundreds of them."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson
from sqlalchemy import JSON, Text, cast, func, literal, select

from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches

IDS_PER_QUERY: Final = 500

_CHANGING: Final = (
    batches.c.status,
    batches.c.expiring,
    batches.c.paused,
    batches.c.holder,
    batches.c.priority,
    batches.c.expires_at,
    batches.c.rows_total,
    batches.c.rows_done,
    batches.c.rows_failed,
    batches.c.chunks_done,
    batches.c.prompt_tokens,
    batches.c.completion_tokens,
    batches.c.gpu_seconds,
    batches.c.trouble,
)
"""What every change of a batch touches: nothing else changes unless one of these does in the same transaction."""

# Joined by the database: to fetch the columns one by one costs four times as much.
STATE: Final = functools.reduce(
    operator.add, (func.coalesce(cast(column, Text), "") + "\n" for column in _CHANGING)
).label("state")


@dataclass(frozen=True)
class Seen:
    """What is known of a batch without reading it."""

    team: str
    version: str


def statuses_seen(seen: Mapping[str, str | None]) -> str:
    """The statuses in the versions that were seen, for :meth:`BatchChanges.differing`."""
    statuses = {batch_id: status_in(version or "") for batch_id, version in seen.items()}
    return orjson.dumps(statuses).decode()


def status_in(version: str) -> str:
    """The status that a batch of that version has."""
    return version.partition(".")[0]


class BatchChanges:
    """Looks at many batches at once.

    A *version* is a text that differs from the one before whenever its batch has changed, and the same for every
    process that looks.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def versions(self, batch_ids: Collection[str]) -> dict[str, Seen]:
        """The versions of those batches that there are, of all teams."""
        found = {}
        with self._database.reading() as connection:
            for ids in id_slices(batch_ids):
                query = select(batches.c.id, batches.c.team, STATE).where(batches.c.id.in_(ids))
                for batch_id, team, state in connection.execute(query).tuples():
                    found[batch_id] = Seen(team, version_of(state))
        return found

    def differing(self, team: str, statuses: str, *, limit: int | None = None) -> list[str]:
        """Those of a team's batches that are in another status, or that there are not: ``limit`` at most.

        The database compares, at a tenth of what it costs to read thousands of batches.
        """
        with self._database.reading() as connection:
            postgres = connection.dialect.name == "postgresql"
            given = func.json_each_text(cast(literal(statuses, Text), JSON)) if postgres else func.json_each(statuses)
            seen = given.table_valued("key", "value", name="seen")
            same = (batches.c.id == seen.c.key) & (batches.c.team == team)
            differs = batches.c.status.is_distinct_from(seen.c.value)
            query = select(seen.c.key).select_from(seen.outerjoin(batches, same)).where(differs).limit(limit)
            return list(connection.execute(query).scalars())

    def records(self, team: str, batch_ids: Collection[str]) -> list[tuple[str, Mapping[str, Any]]]:
        """Those of the batches that are the team's, each with the version that it was read in."""
        found: list[tuple[str, Mapping[str, Any]]] = []
        with self._database.reading() as connection:
            for ids in id_slices(batch_ids):
                query = select(batches, STATE).where(batches.c.id.in_(ids), batches.c.team == team)
                found += [(version_of(row.state), row._asdict()) for row in connection.execute(query)]
        return found


def version_of(state: str) -> str:
    """The version of a batch whose ``STATE`` was selected with its other columns."""
    status, _, _ = state.partition("\n")
    return f"{status}.{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def id_slices(batch_ids: Collection[str]) -> Iterator[list[str]]:
    """The ids in lists that fit one query each."""
    remaining = iter(batch_ids)
    while ids := list(islice(remaining, IDS_PER_QUERY)):
        yield ids
