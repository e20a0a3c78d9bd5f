"""Removes what has had its time. One round does a bounded amount, and one process cleans at a time.

What goes when, on the store's clock (``grace``, ``keep`` and ``record`` are settings):

* A file's bytes ``grace`` after it was deleted or has expired, unless a batch that lives reads it.
* Of a batch that ended ``grace`` ago what only its run needed: chunks, staged rows, keys. What its ``/results`` and a
  retry read stays.
* Of a batch that ended ``keep`` ago (and at least ``grace``) all bytes and its answers in the index, which nobody
  reuses any more. It waits for its own result files, which have a time of their own, and while a later generation
  lives, which may go on from it. ``/results`` and a retry are refused from then on. Its target is the user's.
* The record of a batch that ended ``record`` ago, with all generations of its key; then those of its files.
* Whatever no record needs and is older than ``grace``: what killed uploads, planners, workers and assemblers left.
  Something that is just being written is younger, and its record comes before it is as old.

The record always says it first: a process that dies before the bytes are gone leaves something that nothing needs. The
rule for that is in :mod:`airflow_batch_llm.service.needed_bytes`, and no other code decides over a key.

A storage carries the mark of its store. Where that is another store's (one that was lost and made anew, or two services
with one ``--storage``), nothing in it is known, so nothing is swept, and that is said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Self

from airflow_batch_llm.child_process import process_name
from airflow_batch_llm.service.needed_bytes import NeededBytes, is_own, lasts
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage import open_storage
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.byte_records import ByteRecords
from airflow_batch_llm.store.cleaning import CleaningLostError, Cleanings, Turn
from airflow_batch_llm.store.database import Database, StoreTroubleError
from airflow_batch_llm.store.index_files import IndexFiles
from airflow_batch_llm.store.retention import EndedBatch, Retention

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 300.0
"""Much longer than the deletion of one page of keys takes; extended before each."""
IDLE_SECONDS: Final = 60.0
"""How soon the next round comes when nothing is left to do, or when something was in the way."""
LOOK_SECONDS: Final = 5.0
"""How often a process asks whether a round is due."""
SWEEP_SECONDS: Final = 6 * 3_600.0
"""How often all keys are looked at: a million are a thousand requests to S3."""
PAGE: Final = 500
"""Keys that are looked at, or deleted, at once."""
PAGES: Final = 10
"""How many of those a round sweeps."""
AT_ONCE: Final = 100
"""How many records of one kind a round takes."""
MARK: Final = "store-id"
"""The key under which a storage has the name of its store."""


@dataclass
class Cleaner:
    """Cleans one service's store and storage."""

    settings: ServiceSettings
    storage: Storage
    cleanings: Cleanings
    retention: Retention
    index_files: IndexFiles
    needed: NeededBytes
    holder: str

    @classmethod
    def open(cls, settings: ServiceSettings, *, database: Database | None = None) -> Self:
        database = database or Database(settings.store_url)
        return cls(
            settings,
            open_storage(settings),
            Cleanings(database),
            Retention(database),
            IndexFiles(database),
            NeededBytes(ByteRecords(database)),
            process_name(),
        )

    def run_until(self, over: threading.Event) -> None:
        """Cleans whenever something is due, until it is told to stop."""
        while not over.is_set():
            try:
                worked = self.run_once()
            except StoreTroubleError as error:
                log.warning("cleaning waits for the store: %s", error)
                worked = False
            except Exception:
                log.exception("cleaning broke off; it is tried again when its lease ends")
                worked = False
            if not worked:
                over.wait(LOOK_SECONDS)

    def run_once(self) -> bool:
        """One round, if one is due and nobody else cleans; gives whether there was one."""
        turn = self.cleanings.claim(self.holder, lease_seconds=LEASE_SECONDS)
        if turn is None:
            return False
        try:
            more = self._round(turn)
            self.cleanings.end(turn, seconds=0.0 if more else IDLE_SECONDS)
        except CleaningLostError as error:
            log.info("stopped cleaning: %s", error)
        return True

    def _round(self, turn: Turn) -> bool:
        """Every step once; gives whether one of them has more to do. Trouble with one leaves the others alone."""
        steps: tuple[Callable[[Turn], bool], ...] = (
            self._drop_files,
            self._drop_staged,
            self._drop_bytes,
            self._drop_index,
            self._forget,
            self._sweep,
        )
        more = False
        for step in steps:
            try:
                self.cleanings.extend(turn, lease_seconds=LEASE_SECONDS)
                more |= step(turn)
            except (OSError, StoreTroubleError):
                log.exception("%s met trouble; it is tried again in %.0f s", step.__name__.strip("_"), IDLE_SECONDS)
        return more

    def _drop_files(self, turn: Turn) -> bool:
        keys = self.retention.drop_files(grace=self._grace, limit=AT_ONCE)
        self._delete(turn, keys)
        return len(keys) == AT_ONCE

    def _drop_staged(self, turn: Turn) -> bool:
        ended = self.retention.drop_staged(grace=self._grace, limit=AT_ONCE)
        for batch in ended:
            self._delete(turn, self._staged(batch))
        return len(ended) == AT_ONCE

    def _staged(self, batch: EndedBatch) -> Iterator[str]:
        if batch.plan_key is None:
            return
        for found in self.storage.scan(batch.plan_key):
            if not lasts(batch.of_table, found.key.removeprefix(f"{batch.plan_key}/")):
                yield found.key

    def _drop_bytes(self, turn: Turn) -> bool:
        dropped = self.retention.drop_bytes(keep=max(self.settings.keep_seconds, self._grace), limit=AT_ONCE)
        for batch_id in dropped:
            self._delete(turn, (found.key for found in self.storage.scan(f"batches/{batch_id}")))
            self.storage.delete_prefix(f"batches/{batch_id}")
            log.info("dropped the bytes of %s, which ended long ago", batch_id)
        return len(dropped) == AT_ONCE

    def _drop_index(self, turn: Turn) -> bool:
        for team in self.retention.teams_with_unused_index():
            self._delete(turn, self.index_files.drop_empty(team))
        return False

    def _forget(self, turn: Turn) -> bool:
        keep = max(self.settings.record_seconds, self.settings.keep_seconds, self._grace)
        forgotten = self.retention.forget_batches(keep=keep, limit=AT_ONCE)
        files = self.retention.forget_files(keep=keep, limit=AT_ONCE)
        if forgotten or files:
            log.info("forgot %d batches and %d files", len(forgotten), files)
        return len(forgotten) == AT_ONCE or files == AT_ONCE

    def _sweep(self, turn: Turn) -> bool:
        """Some pages of all keys, from where the round before stopped."""
        if not turn.place and turn.swept_at is not None and turn.now < turn.swept_at + SWEEP_SECONDS:
            return False
        if not self._marked(turn):
            return False
        before = turn.now - self._grace
        if not turn.place:
            self.storage.drop_unfinished(before=before, ours=is_own)
        place = self._sweep_behind(turn, before)
        self.cleanings.note(turn, place=place, swept_at=turn.swept_at if turn.place else turn.now)
        return place != ""

    def _sweep_behind(self, turn: Turn, before: float) -> str:
        """Gives the last key that was looked at; an empty one at the end."""
        scan = self.storage.scan(after=turn.place)
        for _ in range(PAGES):
            page = list(islice(scan, PAGE))
            old = [found.key for found in page if found.stored_at < before]
            unneeded = self.needed.unneeded(old)
            self._delete(turn, unneeded)
            if unneeded:
                log.info("removed %d keys that nothing needs, first %s", len(unneeded), unneeded[0])
            if len(page) < PAGE:
                return ""
        return page[-1].key

    def _marked(self, turn: Turn) -> bool:
        """Whether the storage is this store's; one that has no mark becomes that."""
        marked_for = mark_of(self.storage)
        if marked_for is None:
            self.storage.put(MARK, turn.store_id.encode())
        trouble = foreign_mark(marked_for, turn.store_id)
        self.cleanings.note(turn, trouble=trouble)
        if trouble:
            log.error(trouble)
        return trouble is None

    def _delete(self, turn: Turn, keys: Sequence[str] | Iterator[str]) -> None:
        left = iter(keys)
        while some := list(islice(left, PAGE)):
            self.cleanings.extend(turn, lease_seconds=LEASE_SECONDS)
            self.storage.delete_many(some)

    @property
    def _grace(self) -> float:
        return self.settings.grace_seconds


def mark_of(storage: Storage) -> str | None:
    """Whose a storage says it is."""
    try:
        with storage.open(MARK) as stream:
            return stream.read().decode()
    except FileNotFoundError:
        return None


def foreign_mark(marked_for: str | None, store_id: str) -> str | None:
    """What is wrong if a storage is another store's."""
    if marked_for in (None, store_id):
        return None
    return (
        f"The storage bears the mark of store {marked_for}, and this service's store is {store_id}. It was not swept, "
        "since another service may need what is in it. Give each service a storage of its own; or, if that store is "
        f"gone for good, delete the key {MARK!r} from the storage."
    )
