"""Pages of a team's batches, filtered, counted and ordered from one index, however many there are.

Only the records of the page itself are read, unless somebody searches or asks for one task or model:
``ix_batches_overview`` has all that the other filters, the counts and the orders need.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import JSON, ColumnElement, Select, Text, and_, case, cast, func, literal, or_, select

from airflow_batch_llm.models import LIVING, BatchStatus
from airflow_batch_llm.page_wire import OverviewQuery
from airflow_batch_llm.store.batches import ORIGIN
from airflow_batch_llm.store.changes import STATE, version_of
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.engines import LOWER
from airflow_batch_llm.store.tables import NO_DUE, batches, tokens
from airflow_batch_llm.store.turns import RAISED_PRIORITY

PAUSED: Final = "paused"
"""What a batch is counted as that is in progress and paused."""
MOST_LOAD: Final = 0.02
"""How much of the time may go into finding out what there is to filter by; it is kept for as long as that takes."""
QUICK_SECONDS: Final = 0.005
"""What takes less is not kept."""

_target: ColumnElement[str] = batches.c.dataset["target"].as_string()
_SHOWN: Final = (
    *(batches.c[name] for name in ("id", "team", "status", "paused", "canary", "canary_rows", "trouble", *ORIGIN)),
    *(batches.c[name] for name in ("model", "endpoint", "generation", "priority", "dry_run", "created_at")),
    *(batches.c[name] for name in ("completed_at", "failed_at", "expired_at", "cancelled_at", "expires_at")),
    *(batches.c[name] for name in ("rows_total", "rows_done", "rows_failed", "rows_reused", "rows_duplicate")),
    _target.label("target"),
)
_SEARCHED: Final = (*(batches.c[name] for name in ("id", "key", "dag_id", "task_id", "run_id", "model")), _target)

_status: ColumnElement[str] = case(
    (and_(batches.c.status == BatchStatus.IN_PROGRESS, batches.c.paused.is_not(None)), PAUSED), else_=batches.c.status
)
_COUNTS: Final = select(
    *(func.count().filter(_status == status).label(status) for status in (*BatchStatus, PAUSED))
).select_from(batches)
"""One pass; to group by the status would sort them all on SQLite."""
_lives = batches.c.status.in_(sorted(LIVING))
_NEWEST: Final = (batches.c.created_at.desc(), batches.c.id.desc())
_BY_PRIORITY: Final = (
    case((_lives & batches.c.paused.is_(None), 0), (_lives, 1), else_=2),
    case((~_lives, 0), (batches.c.raised, RAISED_PRIORITY), else_=batches.c.priority).desc(),
    case((_lives, func.coalesce(batches.c.expires_at, NO_DUE)), else_=0.0),
    case((_lives, batches.c.created_at), else_=-batches.c.created_at),
    batches.c.id,
)
"""What the pool takes next comes first, and of what has ended the newest."""


@dataclass(frozen=True)
class Page:
    """One look, of one moment: ``at`` is the store's time then."""

    at: float
    statuses: dict[str, int]
    """Batches by status under all filters but that of the status."""
    records: list[Mapping[str, Any]]
    versions: dict[str, str]
    """Of the batches of the page, as :class:`~airflow_batch_llm.store.changes.BatchChanges` has them."""


@dataclass(frozen=True)
class Choices:
    """The Dags and models that a team's batches have, with the Airflow of each Dag, as they occur together."""

    found: tuple[tuple[str | None, str | None, str | None], ...]

    def among(self, asked: OverviewQuery) -> tuple[list[str], list[str]]:
        """The Dags and the models, of batches of the visible Dags and Airflows alone where those are given."""
        dags, airflows = asked.visible_dag_ids, asked.visible_deployments
        visible, own = set(dags or ()), set(airflows or ())
        found = [
            (dag, model)
            for deployment, dag, model in self.found
            if (dags is None or dag in visible) and (airflows is None or deployment in own)
        ]
        return sorted({dag for dag, _ in found if dag is not None}), sorted(
            {model for _, model in found if model is not None}
        )


class Overviews:
    """Looks at many batches of one team, and at which teams there are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, tuple[float, Choices]] = {}
        self._lock = threading.Lock()

    def page(self, team: str, asked: OverviewQuery) -> Page:
        """What a query asks for, in one view and four short queries, whatever there is."""
        with self._database.reading() as connection:
            fitting = list(_fitting(team, asked, postgres=connection.dialect.name == "postgresql"))
            at = connection.execute(select(self._database.now())).scalar_one()
            counts = connection.execute(_COUNTS.where(*fitting)).one()._asdict()
            ids = list(connection.scalars(_page(asked, fitting)))
            read = connection.execute(select(*_SHOWN, STATE).where(batches.c.id.in_(ids))).all() if ids else []
        found = {row.id: row for row in read}
        return Page(
            at=float(at),
            statuses={status: count for status, count in counts.items() if count},
            records=[found[batch_id]._asdict() for batch_id in ids],
            versions={batch_id: version_of(found[batch_id].state) for batch_id in ids},
        )

    def choices(self, team: str) -> Choices:
        """What there is to filter by; with very many batches as it was some seconds ago."""
        with self._lock:
            until, kept = self._kept.get(team, (0.0, None))
        started = time.monotonic()
        if kept is not None and started < until:
            return kept
        query = select(batches.c.deployment, batches.c.dag_id, batches.c.model).where(batches.c.team == team).distinct()
        with self._database.reading() as connection:
            found = Choices(tuple(connection.execute(query).tuples().all()))
        took = time.monotonic() - started
        with self._lock:
            self._kept[team] = (started + (took / MOST_LOAD if took > QUICK_SECONDS else 0.0), found)
        return found

    def teams(self) -> list[str]:
        """Those that have a batch or a token, looked up one after the other: never all batches."""
        first = select(func.min(batches.c.team).label("team")).cte("teams", recursive=True)
        beyond = select(func.min(batches.c.team)).where(batches.c.team > first.c.team).scalar_subquery()
        with_batches = first.union_all(select(beyond).where(first.c.team.is_not(None)))
        with self._database.reading() as connection:
            found = {*connection.scalars(select(with_batches.c.team)), *connection.scalars(select(tokens.c.team))}
        return sorted(found - {None})


def _page(asked: OverviewQuery, fitting: list[ColumnElement[bool]]) -> Select[Any]:
    """The ids of the page, which the index gives: a record is read for none that is only passed over."""
    query = select(batches.c.id).where(*fitting)
    if asked.status is not None:
        query = query.where(_status.in_(sorted(set(asked.status))))
    order = _NEWEST if asked.order == "newest" else _BY_PRIORITY
    return query.order_by(*order).offset(asked.offset).limit(asked.limit)


def _fitting(team: str, asked: OverviewQuery, *, postgres: bool) -> Iterator[ColumnElement[bool]]:
    """All filters but that of the status."""
    yield batches.c.team == team
    if asked.visible_dag_ids is not None:
        yield batches.c.dag_id.in_(_values(asked.visible_dag_ids, postgres=postgres))
    named = {"models": "model", "dag_ids": "dag_id", "batch_ids": "id", "visible_deployments": "deployment"}
    for several, column in named.items():
        if (values := getattr(asked, several)) is not None:
            yield batches.c[column].in_(values)
    for column in ("task_id", "run_id", "map_index"):
        if (value := getattr(asked, column)) is not None:
            yield batches.c[column] == value
    if asked.search is not None:
        yield or_(*(_has(column, asked.search, postgres=postgres) for column in _SEARCHED))


def _has(column: ColumnElement[str], text: str, *, postgres: bool) -> ColumnElement[bool]:
    """Whether a text stands in a column, in whatever case."""
    if postgres:
        return column.icontains(text, autoescape=True)
    if text.isascii():  # SQLite's LIKE looks at the case of no letter of ASCII, and is twice as fast without lower()
        return column.contains(text, autoescape=True)
    lower: ColumnElement[str] = getattr(func, LOWER)(column, type_=Text)
    return lower.contains(text.lower(), autoescape=True)


def _values(texts: list[str], *, postgres: bool) -> Select[Any]:
    """The texts as one parameter: a statement takes only so many."""
    given = literal(json.dumps(texts), Text)
    each = func.json_array_elements_text(cast(given, JSON)) if postgres else func.json_each(given)
    return select(each.table_valued("value").c.value)
