"""What a task submits, as its arguments say it once they are rendered."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from airflow_batch_llm.hooks.airflow_names import AirflowFailException
from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.operators.noted import Note
from airflow_batch_llm.operators.queue_place import QueuePlace
from airflow_batch_llm.operators.sources import Place
from airflow_batch_llm.operators.submission import TaskBatchNames
from airflow_batch_llm.wire import BatchCreate, DatasetSpec

if TYPE_CHECKING:
    from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

DAY: Final = "24h"
"""The completion window of request files: the only one that OpenAI takes."""


def batch_create(
    task: BatchLLMOperator, names: TaskBatchNames, queue: QueuePlace, source: Place | None, note: Note
) -> BatchCreate:
    """The batch of ``task``, over the places ``source`` (None for a request file).

    Raises AirflowFailException where a template was rendered to what cannot be a batch.
    """
    try:
        return BatchCreate(
            **(_request_file(task) if source is None else _table(task, names, source)),
            metadata={**(task.metadata or {}), **note.metadata()} or None,
            key=names.key,
            series=names.series,
            group=names.group,
            origin=names.origin,
            holder=names.holder,
            on_changed=task.on_changed,
            pause_unwatched_after=_seconds(task.pause_unwatched_after),
            **asdict(queue),
        )
    except ValidationError as error:
        raise AirflowFailException(
            f"Rendered, the arguments make no batch: {_what_is_wrong(error)}. Nothing was submitted."
        ) from None  # the error repeats the values, which may be of a prompt


def _what_is_wrong(error: ValidationError) -> str:
    """Each field once, without its value: some of them are tried as several types."""
    told: dict[str, str] = {}
    for found in error.errors(include_url=False, include_input=False, include_context=False):
        told.setdefault(".".join(map(str, found["loc"][:2])), found["msg"])
    return "; ".join(f"{place}: {said}" for place, said in told.items())


def _table(task: BatchLLMOperator, names: TaskBatchNames, source: Place) -> dict[str, Any]:
    dataset = DatasetSpec(
        source=source,
        target=task.target,
        format=task.format,
        compression=task.compression,
        messages=task.messages,
        input=task.input,
        constants=task.constants or {},
        passthrough=task.passthrough,
        choices=task.choices,
        output_schema=task.output_schema,
        parameters=task.parameters,
        quarantine=task.quarantine,
        overwrite=task.overwrite,
    )
    anew = names.cleared and task.on_clear == "rerun"
    return {
        "dataset": dataset,
        "model": task.model,
        "endpoint": task.endpoint,
        "completion_window": task.completion_window,
        "reuse": "never" if anew else task.reuse,
        "dry_run": task.estimates,
        "canary_rows": task.canary_rows,
    }


def _seconds(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds())


def _request_file(task: BatchLLMOperator) -> dict[str, Any]:
    return {
        # An empty text would be refused as a file that does not exist; this says what is wrong.
        "input_file_id": _named(task.input_file_id),
        "endpoint": task.endpoint or CHAT_COMPLETIONS,
        "completion_window": task.completion_window or DAY,
    }


def _named(input_file_id: str | None) -> str:
    if not isinstance(input_file_id, str) or not input_file_id.strip():
        raise AirflowFailException(
            f"Rendered, input_file_id is {input_file_id!r}, which names no file. Nothing was submitted."
        )
    return input_file_id.strip()
