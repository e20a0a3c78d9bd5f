"""Which of the service's own bytes something still needs, told from their keys and the records.

=================================  =================================================================================
key                                needed
=================================  =================================================================================
``files/<file>``                   until its record says that it was dropped
``index/<team>/<name>.parquet``    while the store has a line for it
``batches/<id>/…``                 never, once the batch is unknown or its bytes were dropped; and else:
``    chunks/<n>/<part>``          if the part was committed: for assembling, ``/results``, and a retry
``    plan-<attempt>/…``           while it is planned, whatever it is; then of the attempt that counted alone
``      results/…``                also after the end: for ``/results``, and a retry
``      rows.parquet``             of a request file also after the end: ``/results`` finds the ``custom_id`` there
``      everything else``          until the end: chunks for workers, staged rows, copies and keys for assembling
``    files-<attempt>/…``          while it lives, whatever it is; then beside a result file that was not dropped
=================================  =================================================================================

Index files hold the answers themselves, so nothing that reuses a batch's answers reads the batch's own bytes, and a
plan has copies of all answers that it goes on from or reuses: the generation before is read only while it is planned.

A key of any other form is not the service's, or a newer version's: it is left alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from airflow_batch_llm.service.plan_stage import RESULTS_FOLDER, ROWS_FILE
from airflow_batch_llm.store.byte_records import BatchBytes, ByteRecords

_BATCH: Final = re.compile(
    r"batches/(batch_[0-9a-f]{32})/(plan-\d+/.+|files-\d+/.+|chunks/(\d+)/\d+-\d+-[0-9a-f]{16}\.jsonl\.zst)"
)
_FILE: Final = re.compile(r"files/(file-[0-9a-f]{32})")
_INDEX: Final = re.compile(r"index/[0-9a-f]{16}/[0-9a-f]{32}\.parquet")


def is_own(key: str) -> bool:
    """Whether a key has the form that this service gives its keys."""
    return any(pattern.fullmatch(key) for pattern in (_BATCH, _FILE, _INDEX))


def needs(batch: BatchBytes | None, key: str, committed: Iterable[str]) -> bool:
    """Whether a key of a batch is needed; ``committed`` are the keys of its parts."""
    matched = _BATCH.fullmatch(key)
    if batch is None or batch.bytes_dropped or matched is None:
        return False
    kind = matched[2].partition("-")[0]
    if kind == "plan":
        return _needs_of_plan(batch, key)
    if kind == "files":
        return not batch.ended or _folder(key) in map(_folder, batch.result_keys)
    return key in committed


def _needs_of_plan(batch: BatchBytes, key: str) -> bool:
    if batch.plan_key is None:
        return not batch.ended
    if not key.startswith(f"{batch.plan_key}/"):
        return False
    return not batch.staged_dropped or lasts(batch.of_table, key.removeprefix(f"{batch.plan_key}/"))


def lasts(of_table: bool, name: str) -> bool:
    """Whether something in a plan, by its name below that, is needed after the end of its batch."""
    return name.startswith(f"{RESULTS_FOLDER}/") or (name == ROWS_FILE and not of_table)


@dataclass(frozen=True)
class NeededBytes:
    """Asks the store about keys."""

    records: ByteRecords

    def unneeded(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that are the service's and that nothing needs; some hundred keys at a time."""
        of_batches: dict[str, list[str]] = defaultdict(list)
        of_files: dict[str, str] = {}
        of_index = [key for key in keys if _INDEX.fullmatch(key)]
        for key in keys:
            if matched := _BATCH.fullmatch(key):
                of_batches[matched[1]].append(key)
            elif matched := _FILE.fullmatch(key):
                of_files[key] = matched[1]
        needed = self.records.index_keys(of_index) | self.records.file_keys(of_files.values())
        for batch_id, batch in self.records.batches(of_batches).items():
            needed |= self._needed_of(batch, of_batches[batch_id])
        return [key for key in keys if key not in needed and is_own(key)]

    def _needed_of(self, batch: BatchBytes, keys: Sequence[str]) -> set[str]:
        numbers = [int(matched[3]) for key in keys if (matched := _BATCH.fullmatch(key)) and matched[3]]
        committed = self.records.committed(batch.id, numbers) if numbers else set()
        return {key for key in keys if needs(batch, key, committed)}


def _folder(key: str) -> str:
    return key.rpartition("/")[0]
