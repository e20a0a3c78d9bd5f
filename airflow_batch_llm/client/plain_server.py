"""Submitting once on a server that has OpenAI's batch API and no more: it knows no keys, so the key is metadata.

The promise is weaker than the service's own. A batch is found again by looking through the newest batches of the
server; two submits at the same moment, or one whose batch the server does not list yet, can give two batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from airflow_batch_llm import clock
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import ConflictError, NoAnswerError, NotFoundError, RefusedError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import OPENAI_CREATE_FIELDS, Batch, BatchCreate

log = logging.getLogger(__name__)

KEY: Final = "batch_llm_key"
"""The metadata that holds a batch's key."""
MOST_BATCHES: Final = 500
"""How many batches are looked at; five calls."""
LONGEST_AGO: Final = timedelta(days=30)
"""How old a batch may be that is still found: OpenAI keeps its files no longer."""
PAGE: Final = 100

_GONE: Final = frozenset({BatchStatus.FAILED, BatchStatus.CANCELLED, BatchStatus.EXPIRED, BatchStatus.CANCELLING})


def submit_once(client: BatchClient, create: BatchCreate, key: str, *, known: str | None = None) -> Batch:
    """The batch that lives or completed under ``key``, or else a new one. ``known`` is as for :func:`find`.

    One of another file is cancelled, if it lives, and replaced, or refused, as ``create.on_changed`` says. Raises
    :class:`NoAnswerError` where the server's batches cannot be read: then nothing is submitted.
    """
    found = find(client, key, known=known)
    if found is not None and found.status not in _GONE:
        # A server that does not say what a batch is for is believed to have kept it.
        if found.input_file_id in (None, create.input_file_id) and found.endpoint in ("", None, create.endpoint):
            return found
        _give_way(client, found, create)
    plain = {name: getattr(create, name) for name in OPENAI_CREATE_FIELDS}
    return client.submit(BatchCreate(**{**plain, "metadata": {**(create.metadata or {}), KEY: key}}))


def _give_way(client: BatchClient, known: Batch, create: BatchCreate) -> None:
    if create.on_changed == "fail":
        raise ConflictError(
            f"Batch {known.id} ({known.status}) of this task is for file {known.input_file_id} at {known.endpoint}, "
            f"and the task names file {create.input_file_id} at {create.endpoint} by now. Nothing was submitted. Clear "
            'the task, or let it submit anew with on_changed="resubmit".',
            code="key_conflict",
            param="input_file_id",
        )
    if not known.status.ended:
        client.cancel(known.id)


def find(client: BatchClient, key: str, *, known: str | None = None, now: datetime | None = None) -> Batch | None:
    """The batch ``known`` if that has ``key``; else the newest with it, among the newest 500 of the last 30 days."""
    batch = None if known is None else _get(client, known)
    if batch is not None and (batch.metadata or {}).get(KEY) == key:
        return batch
    oldest = ((now or clock.now()) - LONGEST_AGO).timestamp()
    for number, batch in enumerate(_newest_first(client)):
        if batch.created_at < oldest:
            return None
        if (batch.metadata or {}).get(KEY) == key:
            return batch
        if number + 1 >= MOST_BATCHES:
            log.warning("No batch has the key %s among the newest %s of %s.", key, MOST_BATCHES, client.url)
            return None
    return None


def _get(client: BatchClient, batch_id: str) -> Batch | None:
    try:
        return client.get(batch_id)
    except NotFoundError:
        return None


def _newest_first(client: BatchClient) -> Iterator[Batch]:
    after: str | None = None
    while True:
        try:
            page = client.list(after=after, limit=PAGE)
        except RefusedError as error:
            raise NoAnswerError(
                f"The batches at {client.url} cannot be listed, so it is unknown whether this one was submitted "
                f"before. Nothing was submitted. {error}"
            ) from error
        yield from page.data
        after = page.last_id or (page.data[-1].id if page.data else None)
        if not page.has_more or after is None:
            return
