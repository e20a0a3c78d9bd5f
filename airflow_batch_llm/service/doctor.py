"""Checks a service's store against its storage and its machine, beside a service that runs or without one.

Holds a page of records and keys at a time, and of what is wrong the first :data:`SHOWN` of each kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from pydantic import ValidationError

from airflow_batch_llm import clock
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.cleaner import foreign_mark, mark_of
from airflow_batch_llm.service.comparison import Comparison, Missing, Orphan
from airflow_batch_llm.service.lifecycle import to_wire
from airflow_batch_llm.service.needed_bytes import NeededBytes
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage import open_storage
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.byte_records import ByteRecords
from airflow_batch_llm.store.cleaning import Cleanings
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.expected import ExpectedObjects
from airflow_batch_llm.store.health import Health
from airflow_batch_llm.store.workers import Workers

SHOWN: Final = 20
"""How many findings of one kind are kept to be shown; all are counted."""
STUCK_SECONDS: Final = 600.0
"""A worker that lives takes a free chunk within seconds, a duty process a duty."""
LEAST_FREE_BYTES: Final = 1 << 30
LEAST_FREE_SHARE: Final = 0.02
AT_ONCE: Final = 500


@dataclass
class Check:
    """What one look has found: nothing, or what is wrong with which things."""

    name: str
    means: str
    """What is asked, as a reader of the table needs it."""
    wrong: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.wrong == 0

    def add(self, which: str, says: str, **more: Any) -> None:
        self.wrong += 1
        if len(self.findings) < SHOWN:
            self.findings.append({"which": which, "says": says, **more})

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "ok": self.ok, "wrong": self.wrong, "findings": self.findings, "note": self.note}


@dataclass
class Doctor:
    """Looks at one service. Changes nothing but what :meth:`examine` is told to remove."""

    settings: ServiceSettings
    storage: Storage
    database: Database
    health: Health

    @classmethod
    def open(cls, settings: ServiceSettings, *, database: Database | None = None) -> Self:
        """Raises :class:`InvalidRequestError` where there is no store: to open one would make it."""
        if settings.database_url is None and not (settings.home / "store.sqlite").is_file():
            raise InvalidRequestError(
                f"There is no store at {settings.home / 'store.sqlite'}, so nothing was looked at. "
                "Name the folder that `batch-llm serve` was given as --home, or its --database-url."
            )
        database = database or Database(settings.store_url)
        return cls(settings, open_storage(settings), database, Health(database))

    def examine(self, *, fix: bool = False) -> Iterator[Check]:
        """One check after the other. ``fix`` removes the objects that nothing needs, and nothing else."""
        yield (migrations := self._migrations())
        yield self._token()
        yield self._disk()
        if not migrations.ok:
            return
        yield self._chunk_leases()
        yield self._duty_leases()
        yield self._waiting()
        yield self._counters()
        yield (mark := self._mark())
        if mark.ok:
            yield from self._objects(fix=fix)

    def _migrations(self) -> Check:
        check = Check("migrations", "the store's tables are of this version")
        current, head = self.health.revisions()
        if current != head:
            says = f"The tables are at migration {current}, and this version wants {head}. "
            check.add("store", f"{says}`batch-llm serve` brings them there; nothing else of the store was looked at.")
        return check

    def _token(self) -> Check:
        check = Check("token_file", "only its owner can read the token")
        path = self.settings.token_path
        if not path.exists():
            check.note = f"There is no {path}."
        elif path.stat().st_mode & 0o077:
            mode = path.stat().st_mode & 0o777
            check.add(str(path), f"Others than its owner can use it (mode {mode:o}). Do: chmod 600 {path}")
        return check

    def _disk(self) -> Check:
        check = Check("disk_space", f"at least {LEAST_FREE_BYTES >> 30} GiB and {LEAST_FREE_SHARE:.0%} are free")
        said = []
        for path in {_existing(self.settings.home), _existing(self.settings.scratch_root)}:
            usage = shutil.disk_usage(path)
            share = f"{usage.free / (1 << 30):,.1f} of {usage.total / (1 << 30):,.1f} GiB"
            said.append(f"{path}: {share} free")
            if usage.free < max(LEAST_FREE_BYTES, usage.total * LEAST_FREE_SHARE):
                check.add(str(path), f"Only {share} are free.", free_bytes=usage.free)
        check.note = "; ".join(sorted(said))
        return check

    def _chunk_leases(self) -> Check:
        check = Check("chunk_leases", "no chunk waits for a worker that is gone")
        for stuck in self.health.stuck_chunks(STUCK_SECONDS):
            check.add(
                stuck.batch_id,
                f"Chunk {stuck.number} was leased to worker {stuck.worker} (attempt {stuck.attempt}); the lease ran "
                f"out {stuck.seconds:,.0f} s ago, and nobody has taken the chunk since.",
            )
        return check

    def _duty_leases(self) -> Check:
        check = Check("duty_leases", "no duty waits for a process that is gone")
        for stuck in self.health.stuck_duties(STUCK_SECONDS):
            by = f", last by {stuck.holder}" if stuck.holder else ""
            check.add(
                stuck.batch_id,
                f"Its {stuck.kind} duty could be done since {stuck.seconds:,.0f} s and is not{by}. Does a service run?",
            )
        return check

    def _waiting(self) -> Check:
        check = Check("waiting_batches", "no batch waits for something that does not come by itself")
        served = cache(Workers(self.database).served)
        for batch in self.health.living():
            try:
                waiting_for = to_wire(batch, rate=None, served=served(batch["team"])).progress.waiting_for
            except (ArithmeticError, TypeError, ValueError) as error:  # Pydantic's, and those of numbers that are none
                waiting_for = f"Its record cannot be shown to anybody, and it has to be deleted: {_first_said(error)}."
            if waiting_for:
                check.add(batch["id"], waiting_for, status=batch["status"])
        return check

    def _counters(self) -> Check:
        check = Check("counters", "rows and chunks add up")
        for batch_id, says in self.health.miscounted():
            check.add(batch_id, says)
        return check

    def _mark(self) -> Check:
        check = Check("storage_mark", "the storage belongs to this store")
        store_id, marked_for = Cleanings(self.database).store_id(), mark_of(self.storage)
        trouble = foreign_mark(marked_for, store_id or "that has no name yet")
        if trouble:
            check.add("storage", trouble)
        elif marked_for is None and store_id is not None:
            check.note = "It bears no mark. Is it the one that the service was given as --storage?"
        return check

    def _objects(self, *, fix: bool) -> Iterator[Check]:
        orphans = Check("orphan_objects", "every object in storage is needed by something")
        missing = Check("missing_objects", "every object on record is in storage as it was stored")
        records = NeededBytes(ByteRecords(self.database))
        comparison = Comparison(self.storage, ExpectedObjects(self.database), records)
        older_than = self.health.now() - self.settings.grace_seconds
        size = 0
        removable: list[str] = []
        for difference in comparison.differences(older_than=older_than):
            if isinstance(difference, Missing):
                missing.add(difference.expected.key, _missing_said(difference))
                continue
            size += difference.found.size
            orphans.add(difference.found.key, _orphan_said(difference), bytes=difference.found.size)
            removable.append(difference.found.key)
            if fix and len(removable) == AT_ONCE:
                self._remove(removable)
            elif not fix:
                removable.clear()
        if orphans.wrong:
            orphans.note = f"{size:,} bytes in {orphans.wrong:,} objects"
        if fix:
            self._remove(removable)
            _removed(orphans)
        yield orphans
        yield missing

    def _remove(self, keys: list[str]) -> None:
        self.storage.delete_many(keys)
        keys.clear()


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """All checks as JSON."""
    done = list(checks)
    return {"ok": all(check.ok for check in done), "checks": [check.as_json() for check in done]}


def _removed(orphans: Check) -> None:
    if orphans.wrong:
        orphans.note += ", removed"
    orphans.wrong = 0


def _first_said(error: Exception) -> str:
    """What is wrong with a record, without the value, which may be a text of its team's."""
    if not isinstance(error, ValidationError):
        return type(error).__name__
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _orphan_said(orphan: Orphan) -> str:
    return f"Nothing needs it since before {clock.from_unix(orphan.found.stored_at):%Y-%m-%d %H:%M} UTC, or never did."


def _missing_said(missing: Missing) -> str:
    if missing.found_size is None:
        return "A record names it, and it is not there."
    return f"It should have {missing.expected.size or 0:,} bytes and has {missing.found_size:,}."


def _existing(path: Path) -> Path:
    """The path, or the first folder above it that there is."""
    return next(one for one in (path, *path.parents) if one.exists())
