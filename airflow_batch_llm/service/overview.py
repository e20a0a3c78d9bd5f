"""A page of the list of batches, and the wait for another one than the caller has."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import anyio.to_thread
import orjson

from airflow_batch_llm.models import ENDED, BatchStatus
from airflow_batch_llm.page_wire import BatchLine, LineProgress, Overview, OverviewQuery
from airflow_batch_llm.service.changes import MOST_LOAD, Changes, Watch
from airflow_batch_llm.service.lifecycle import origin_of, progress_of
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.batches import Rate
from airflow_batch_llm.store.tokens import Access
from airflow_batch_llm.store.workers import ServedBy

AGAIN_SECONDS: Final = 2.0
"""How soon batches are noticed that come to the page, or leave it, without a change of one that is on it."""
RATE_ALONE_SECONDS: Final = 3.0
"""After how long a rate or an ETA that differs is worth an answer by itself: they fade all the time."""

_RATES: Final = {"tokens_per_second", "rows_per_second", "eta_seconds"}


@dataclass(frozen=True)
class Look:
    """One page as it is now."""

    overview: Overview
    seen: Mapping[str, str]
    """The versions of the batches on it."""
    took: float
    """Seconds."""

    def differs(self, version: str | None, *, also_rates: bool) -> bool:
        if version is None or also_rates:
            return version != self.overview.version
        return version.partition(".")[0] != self.overview.version.partition(".")[0]

    def unchanged(self) -> Overview:
        return self.overview.model_copy(update={"data": None})


def look(state: ServiceState, access: Access, asked: OverviewQuery) -> Look:
    """One page, and what is around it, in a number of queries that does not hang on how many batches there are."""
    started = time.monotonic()
    page = state.overviews.page(access.team, asked)
    dag_ids, models = state.overviews.choices(access.team).among(asked)
    running = [record["id"] for record in page.records if record["status"] == BatchStatus.IN_PROGRESS]
    rates, served = state.batches.rates(running), state.workers.served(access.team)
    wanted = page.statuses if asked.status is None else set(asked.status) & set(page.statuses)
    overview = Overview(
        version="",
        at=page.at,
        data=[_line(record, rates.get(record["id"]), served) for record in page.records],
        total=sum(page.statuses[status] for status in wanted),
        statuses=page.statuses,
        models=models,
        dag_ids=dag_ids,
        teams=teams_of(state, access) if access.sees_all_teams else [],
    )
    versioned = overview.model_copy(update={"version": _version(overview)})
    return Look(versioned, page.versions, time.monotonic() - started)


async def changed(state: ServiceState, access: Access, changes: Changes, asked: OverviewQuery) -> Overview:
    """The page once it differs from the one that the caller has, or what is left of it when the wait has ended.

    Holds no thread while it waits, and looks the rarer the longer a look takes.
    """
    started = time.monotonic()
    while True:
        found = await anyio.to_thread.run_sync(look, state, access, asked)
        looked = time.monotonic()
        left = asked.wait - (looked - started)
        last = left <= 0 or changes.over
        if found.differs(asked.version, also_rates=last or looked - started >= RATE_ALONE_SECONDS):
            return found.overview
        if last:
            return found.unchanged()
        rest = found.took / MOST_LOAD
        await changes.wait(Watch(access.team, found.seen), min(left, max(AGAIN_SECONDS, rest)))
        await anyio.sleep(max(0.0, min(left, rest) - (time.monotonic() - looked)))


def teams_of(state: ServiceState, access: Access) -> list[str]:
    """The teams whose things a token may see."""
    return sorted({access.team, *state.overviews.teams()}) if access.sees_all_teams else [access.team]


def _line(record: Mapping[str, Any], rate: Rate | None, served: list[ServedBy]) -> BatchLine:
    status = BatchStatus(record["status"])
    ended = record[f"{status}_at"] if status in ENDED else None
    as_stored = BatchLine.model_fields.keys() & record.keys() - {"created_at", "expires_at"}
    return BatchLine(
        **{name: record[name] for name in as_stored},
        origin=origin_of(record),
        created_at=int(record["created_at"]),
        ended_at=None if ended is None else int(ended),
        expires_at=None if record["expires_at"] is None else int(record["expires_at"]),
        progress=LineProgress.model_validate(
            progress_of(record, rate=rate, served=served).model_dump(include=set(LineProgress.model_fields))
        ),
    )


def _version(overview: Overview) -> str:
    """Two hashes: of all but the rates, and of the rates."""
    said = overview.model_dump(mode="json", exclude={"version", "at"})
    rates = [[line["progress"].pop(name) for name in sorted(_RATES)] for line in said["data"] or ()]
    return ".".join(hashlib.sha256(orjson.dumps(part)).hexdigest()[:16] for part in (said, rates))
