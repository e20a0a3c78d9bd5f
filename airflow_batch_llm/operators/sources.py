"""What the rows of a batch come from: places that the service reads, or values that the task uploads itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.hooks.airflow_names import AirflowFailException
from airflow_batch_llm.models import FilePurpose
from airflow_batch_llm.operators.inline_rows import InlineRows, write_rows
from airflow_batch_llm.operators.query_result import write_query_result
from airflow_batch_llm.operators.sql_source import SQLSource

KEPT: Final = timedelta(days=7)
"""How long an uploaded source is kept: a retry goes on from it. One whose task died before the submit goes then."""

Place = str | list[str]


class Log(Protocol):
    def info(self, event: str, *args: Any) -> Any: ...


def given(source: Any) -> Any:
    """The source as the operator keeps it: rows in a wrapper, in which nothing is taken for a template."""
    if isinstance(source, (list, tuple)) and source and all(isinstance(row, Mapping) for row in source):
        return InlineRows(list(source))
    return source


def is_uploaded(source: Any) -> bool:
    """Whether the task uploads the rows itself."""
    return isinstance(given(source), (InlineRows, SQLSource))


def placed(source: Any, client: BatchClient, log: Log) -> Place:
    """Where the rows are; those that are values or a query's result are uploaded first.

    Raises AirflowFailException, before anything is submitted, for what cannot be a source.
    """
    source = given(source)
    try:
        if isinstance(source, InlineRows):
            return _uploaded_rows(source.rows, client, log)
        if isinstance(source, SQLSource):
            return _uploaded_result(source, client, log)
        return _places(source)
    except ValueError as error:
        raise AirflowFailException(str(error)) from error


def _places(source: Any) -> Place:
    if isinstance(source, str) and source.strip():
        return source
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("The source is an empty list: there is nothing to ask. Nothing was submitted.")
        wrong = next((place for place in source if not isinstance(place, str) or not place.strip()), None)
        if wrong is None and all(source):
            return list(source)
        raise ValueError(
            f"The source is a list with {wrong!r} in it; it must be of places alone, or of rows (mappings) alone. "
            "Nothing was submitted."
        )
    raise ValueError(
        f"The source is {source!r:.200}; it must be a place or several, rows (a list of mappings) or a SQLSource. "
        "Nothing was submitted."
    )


def _uploaded_rows(rows: Sequence[Mapping[str, Any]], client: BatchClient, log: Log) -> Place:
    with tempfile.TemporaryDirectory(prefix="batch-llm-") as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(rows, path)
        return _uploaded([path], client, log)


def _uploaded_result(source: SQLSource, client: BatchClient, log: Log) -> Place:
    with tempfile.TemporaryDirectory(prefix="batch-llm-") as folder:
        return _uploaded(write_query_result(source, Path(folder)), client, log)


def _uploaded(paths: Sequence[Path], client: BatchClient, log: Log) -> Place:
    size = sum(path.stat().st_size for path in paths)
    seconds = int(KEPT.total_seconds())
    files = [client.upload(path, purpose=FilePurpose.DATASET, expires_after=seconds) for path in paths]
    log.info("Uploaded the source as %s files of %s bytes in all", len(files), f"{size:,}")
    return [file.id for file in files]
