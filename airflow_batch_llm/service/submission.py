"""From the body of ``POST /v1/batches`` to a batch that may be stored: what can be refused before anything is."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_batch_llm import clock
from airflow_batch_llm.errors import ConflictError, InvalidRequestError, TooManyRequestsError
from airflow_batch_llm.models import CHAT_COMPLETIONS, ENDPOINTS, TABLE_ENDPOINTS, FilePurpose
from airflow_batch_llm.service.spec import check_dataset, content_sha256
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.targets import Owner
from airflow_batch_llm.store.batches import NewBatch
from airflow_batch_llm.wire import OPENAI_CREATE_FIELDS, BatchCreate, DatasetSpec, window_seconds

IDEMPOTENCY_KEY = "idempotency_key"
"""The metadata under which clients note a key of theirs."""


def checked_batch(state: ServiceState, team: str, create: BatchCreate, idempotency_key: str | None = None) -> NewBatch:
    """The batch to store. Raises :class:`RefusedError` for what can be seen to be wrong."""
    if state.settings.extensions and idempotency_key is not None:
        create = _under(create, idempotency_key)
    if not state.settings.extensions:
        _check_plain(create)
    _check_deadline(create)
    opens = create.key is None or state.batches.opens(team, create.key)
    if opens:
        _check_rate(state, team)
    if create.dataset is not None and create.input_file_id is None:
        new = _of_dataset(state, team, create)
    elif create.dataset is None and create.input_file_id is not None:
        new = _of_file(state, team, create)
    else:
        raise _refused(
            "Give either `input_file_id` (an uploaded request file) or `dataset` (a table).",
            "missing_required_parameter",
            "input_file_id",
        )
    if not opens and new.on_changed == "resubmit" and state.batches.gives_way(team, create.key, new.content_sha256):
        _check_rate(state, team)
    return dataclasses.replace(new, key=_key(create, new))


def check_repeatable(state: ServiceState, team: str, record: Mapping[str, Any]) -> None:
    """Whether a stored batch can be planned anew. Raises :class:`RefusedError` if its input is gone or another."""
    if record["dataset"] is None:
        state.files.get(team, record["input_file_id"], param="input_file_id")
        return
    spec = DatasetSpec.model_validate(record["dataset"])
    owner = Owner.of(team, record["key"], record["series"], state.target_notes)
    with _readable():
        checked = check_dataset(spec, record["endpoint"], state.finder(team), owner=owner)
    if content_sha256(spec, record["model"], record["endpoint"], checked.files) != record["content_sha256"]:
        raise ConflictError(
            f"Source {checked.shown_source} has changed since batch {record['id']} was submitted. Nothing was "
            "submitted. Submit the table as a new batch.",
            code="source_changed",
            param="dataset.source",
        )


def check_retry_rate(state: ServiceState, team: str, record: Mapping[str, Any]) -> None:
    """A retry that opens a generation counts like a submit; one that finds it open already does not."""
    [last] = state.batches.page(team, after=None, limit=1, key=record["key"])
    if last["id"] == record["id"]:
        _check_rate(state, team)


def _of_dataset(state: ServiceState, team: str, create: BatchCreate) -> NewBatch:
    assert create.dataset is not None  # noqa: S101 (the caller looked)
    if create.model is None:
        raise _refused("A table needs a `model`.", "missing_required_parameter", "model")
    if create.dry_run and create.canary_rows is not None:
        raise _refused("A dry run runs no rows, so it takes no `canary_rows`.", "invalid_request", "canary_rows")
    endpoint = create.endpoint or CHAT_COMPLETIONS
    if endpoint not in TABLE_ENDPOINTS:
        raise _refused(
            f"Endpoint {endpoint!r} is not supported for a table; {' and '.join(TABLE_ENDPOINTS)} are.",
            "endpoint_not_supported",
            "endpoint",
        )
    owner = Owner.of(team, create.key, create.series, state.target_notes)
    with _readable():
        checked = check_dataset(create.dataset, endpoint, state.finder(team), owner=owner, writes=not create.dry_run)
    return NewBatch(
        content_sha256=content_sha256(create.dataset, create.model, endpoint, checked.files, dry_run=create.dry_run),
        dataset=create.dataset.model_dump(mode="json"),
        endpoint=endpoint,
        model=create.model,
        reuse=create.reuse,
        dry_run=create.dry_run,
        canary_rows=create.canary_rows,
        **_common(create),
    )


@contextmanager
def _readable() -> Iterator[None]:
    """What this service may not look at on a disk stays so, however often it is asked: that is no 503."""
    try:
        yield
    except PermissionError as error:
        if error.filename is None:
            raise
        raise _refused(
            f"The service may not read {error.filename}: {error.strerror}. Allow it, or name another place.",
            "place_not_readable",
            "dataset",
        ) from error


def _of_file(state: ServiceState, team: str, create: BatchCreate) -> NewBatch:
    for name in ("endpoint", "completion_window"):
        if getattr(create, name) is None:
            raise _refused(f"Missing required parameter: {name!r}.", "missing_required_parameter", name)
    if create.dry_run or create.reuse == "never":
        raise _refused("`dry_run` and `reuse` are for tables.", "invalid_request", "dry_run")
    if create.canary_rows is not None:
        raise _refused("`canary_rows` is for tables.", "invalid_request", "canary_rows")
    if create.model is not None:
        raise _refused("The model of a request file stands in its lines.", "invalid_request", "model")
    assert create.input_file_id is not None  # noqa: S101 (the caller looked)
    assert create.endpoint is not None  # noqa: S101 (refused above)
    if create.endpoint not in ENDPOINTS:
        raise _refused(
            f"Endpoint {create.endpoint!r} is not supported. Supported are: {', '.join(ENDPOINTS)}.",
            "endpoint_not_supported",
            "endpoint",
        )
    file = state.files.get(team, create.input_file_id, param="input_file_id")
    if file.purpose != FilePurpose.BATCH:
        raise _refused(
            f"File {file.id} has the purpose {file.purpose!r}; a request file is uploaded with purpose 'batch'.",
            "invalid_file_purpose",
            "input_file_id",
        )
    content = hashlib.sha256(f"{create.endpoint} {file.sha256}".encode()).hexdigest()
    return NewBatch(
        content_sha256=content, input_file_id=file.id, endpoint=create.endpoint, model=None, **_common(create)
    )


def _common(create: BatchCreate) -> dict[str, Any]:
    if create.pause_unwatched_after is not None and create.holder is None:
        raise _refused(
            "`pause_unwatched_after` needs a `holder`: a batch that nobody holds is to go on by itself.",
            "invalid_request",
            "pause_unwatched_after",
        )
    same = (
        *("metadata", "completion_window", "key", "series", "group", "on_changed", "holder"),
        *("priority", "fair_group", "deadline", "pause_unwatched_after"),
    )
    return {
        **{name: getattr(create, name) for name in same},
        "window_seconds": window_seconds(create.completion_window) if create.completion_window else None,
        "output_seconds": create.output_expires_after.seconds if create.output_expires_after else None,
        **(create.origin.model_dump() if create.origin else {}),
    }


def _under(create: BatchCreate, header: str) -> BatchCreate:
    """The body with the header's key in it."""
    if create.key not in (None, header):
        raise _refused(
            f"The header Idempotency-Key says {header!r} and the field key {create.key!r}.", "key_mismatch", "key"
        )
    return create.model_copy(update={"key": header})


def _key(create: BatchCreate, new: NewBatch) -> str | None:
    """The key to submit under. One in the metadata is one only together with the content, so it never conflicts:
    Airflow's common.ai sends changed content under an unchanged key."""
    if create.key is not None:
        return create.key
    noted = (create.metadata or {}).get(IDEMPOTENCY_KEY)
    if not noted or create.dataset is not None:
        return None
    return hashlib.sha256(f"metadata {noted} {new.content_sha256}".encode()).hexdigest()


def _check_rate(state: ServiceState, team: str) -> None:
    limit = state.settings.limits.creates_per_hour
    if limit is None:
        return
    count = state.batches.created_within(team, 3_600)
    if count >= limit:
        again = max(1, math.ceil(state.batches.room_in(team, limit, 3_600)))
        raise TooManyRequestsError(
            f"Team {team!r} has submitted {count:,} batches within an hour, and the limit is {limit:,}. "
            f"Nothing was submitted. Try again in {again} seconds.",
            code="rate_limit_exceeded",
            retry_after=again,
        )


def _check_deadline(create: BatchCreate) -> None:
    if create.deadline is not None and create.deadline <= clock.now().timestamp():
        at = clock.from_unix(create.deadline)
        raise _refused(f"The deadline {at:%Y-%m-%d %H:%M:%S} UTC has passed.", "deadline_passed", "deadline")


def _check_plain(create: BatchCreate) -> None:
    extra = sorted(create.model_fields_set - OPENAI_CREATE_FIELDS)
    if extra:
        raise _refused(
            f"Unknown parameter: {extra[0]!r}. This service runs without its extensions.", "unknown_parameter", extra[0]
        )


def _refused(message: str, code: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param=param)
