"""Reading what is known of a batch's rows: results that its plan knew, and parts that workers committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_batch_llm.service.plan_stage import RESULTS_FOLDER
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.worker_wire import ResultLine, decompress, read_lines


class CountsError(Exception):
    """The results do not add up to the batch's rows, or a part is not what was committed. Nothing was published."""


@dataclass(frozen=True)
class PartFile:
    """A committed part: where it lies and what it must be."""

    storage_key: str
    sha256: str
    rows: int


def stored_contents(storage: Storage, prefix: str, parts: Iterable[PartFile]) -> Iterator[bytes]:
    """The lines of all results of a batch, a part's worth at a time: those its plan knew, and those committed.

    Raises :class:`CountsError` for a part that is not what was committed.
    """
    for key in storage.list(f"{prefix}/{RESULTS_FOLDER}"):
        with storage.open(key) as stream:
            yield decompress(stream.read())
    for part in parts:
        yield _committed(storage, part)


def stored_results(storage: Storage, prefix: str, parts: Iterable[PartFile]) -> Iterator[list[ResultLine]]:
    """The same, as results."""
    for content in stored_contents(storage, prefix, parts):
        yield list(read_lines(content, ResultLine))


def _committed(storage: Storage, part: PartFile) -> bytes:
    with storage.open(part.storage_key) as stream:
        content = stream.read()
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise CountsError(f"Part {part.storage_key} is not the one that was committed: its SHA-256 differs.")
    lines = decompress(content)
    count = lines.count(b"\n")
    if count != part.rows:
        raise CountsError(f"Part {part.storage_key} has {count} results where {part.rows} were committed.")
    return lines
