"""Stored batches as clients are shown them: with all that this service adds, or as OpenAI's own API has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.service.lifecycle import to_wire
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.store.workers import ServedBy
from airflow_batch_llm.wire import OPENAI_BATCH_FIELDS, Batch, BatchList


def shown(state: ServiceState, team: str, record: Mapping[str, Any]) -> Batch | JSONResponse:
    (batch,) = as_batches(state, [record], state.workers.served(team))
    return batch if state.settings.extensions else JSONResponse(_plain(batch))


def shown_page(
    state: ServiceState, team: str, records: Sequence[Mapping[str, Any]], *, has_more: bool
) -> BatchList | JSONResponse:
    served = state.workers.served(team)
    page = BatchList(
        data=as_batches(state, records, served),
        first_id=records[0]["id"] if records else None,
        last_id=records[-1]["id"] if records else None,
        has_more=has_more,
    )
    if state.settings.extensions:
        return page
    return JSONResponse(page.model_dump(mode="json") | {"data": [_plain(batch) for batch in page.data]})


def as_batches(state: ServiceState, records: Sequence[Mapping[str, Any]], served: list[ServedBy]) -> list[Batch]:
    """The batch objects with how fast they go; only one that is in progress has a rate."""
    rates = state.batches.rates([record["id"] for record in records if record["status"] == BatchStatus.IN_PROGRESS])
    return [to_wire(record, rate=rates.get(record["id"]), served=served) for record in records]


def _plain(batch: Batch) -> dict[str, Any]:
    return batch.model_dump(mode="json", include=set(OPENAI_BATCH_FIELDS))
