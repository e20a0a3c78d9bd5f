"""One schedule's world: a store, a service and a clock of its own, and nothing that a seed does not decide."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import anyio.to_thread
from fastapi import FastAPI

from airflow_batch_llm import clock
from airflow_batch_llm.models import DEFAULT_TEAM
from airflow_batch_llm.service import duty_context, state
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.duty_context import DutyContext
from airflow_batch_llm.service.places import TeamPlaces
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.storage import open_storage
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.database import Database
from tests.chaos.backends import ChaosDatabase, ChaosStorage, ChaosTree
from tests.chaos.in_process import InProcess, Loops, client_of, inline
from tests.chaos.seams import Process, Seams, Temper
from tests.chaos.watch import Watch

TOKEN: Final = "bl-chaos-of-the-tests"
BEGINS: Final = 1_790_000_000.0
"""When a schedule begins, on its clock."""
LEASE_SECONDS: Final = 30.0


_APPS: Final[list[FastAPI]] = []


def _app(opened: ServiceState) -> FastAPI:
    """The application over this state. To make one takes as long as half a schedule, so it is kept."""
    if not _APPS:
        _APPS.append(create_app(opened))
    _APPS[0].state.service = opened
    return _APPS[0]


@dataclass
class World:
    """Everything but the actors."""

    folder: Path
    store_url: str
    rng: random.Random
    now: float = BEGINS
    lines: list[str] = field(default_factory=list)
    """The log of the schedule."""
    depth: int = 0
    stumbles: list[str] = field(default_factory=list)
    """What the service answered with HTTP 500."""
    sources: dict[str, Any] = field(default_factory=dict)
    """What is at each target's source now."""
    requests: dict[str, dict[str, str]] = field(default_factory=dict)
    """The texts of request files by custom_id, by the SHA-256 of the file."""
    loops: Loops = field(default_factory=Loops)
    service: Process = field(default_factory=lambda: Process("service"))

    def __post_init__(self) -> None:
        self.data = self.folder / "data"
        self.data.mkdir()
        self.settings = ServiceSettings(
            home=self.folder,
            data_roots=(self.data,),
            database_url=self.store_url,
            chunk_rows=self.rng.choice([3, 5, 8]),
            lease_seconds=LEASE_SECONDS,
            duty_lease_seconds=LEASE_SECONDS,
        )
        self.seams = Seams(self.rng, Temper.drawn(self.rng), self.log)
        self.storage = open_storage(self.settings)
        self.watch = Watch(self.store_url, self.storage, self.time, lambda target: self.sources.get(target or ""))

    def time(self) -> float:
        return self.now

    def log(self, line: str) -> None:
        self.lines.append(f"{self.now - BEGINS:7.1f} {'  ' * self.depth}{line}")

    def open(self) -> None:
        """Starts the service."""
        self.state = ServiceState.open(self.settings)
        app = _app(self.state)
        self.transport = InProcess(app, self.service, self.seams, self.loops, stumbled=self.stumbles.append)

        self.client = client_of(self.transport, TOKEN)

    def uploaded_sha256(self, file_id: str) -> str:
        """Of an uploaded file, deleted or not."""
        return next(row.sha256 for row in self.watch.rows("SELECT id, sha256 FROM files") if row.id == file_id)

    def duty_context(self) -> DutyContext:
        """What a new planner or assembler works with."""
        return DutyContext.open(self.settings)

    def close(self) -> None:
        self.state.database.close()
        self.watch.close()
        self.loops.close()

    def _database(self, url: str) -> Database:
        return ChaosDatabase(url, clock=self.time, seams=self.seams, committed=self.watch.committed)

    def _storage(self, settings: ServiceSettings) -> Storage:
        return ChaosStorage(open_storage(settings), self.seams)

    def _places(self, settings: ServiceSettings) -> TeamPlaces:
        teams = TeamPlaces(settings)
        shared = teams.of(DEFAULT_TEAM)
        vars(shared)["local"] = ChaosTree(shared.local, self.seams)
        return teams

    def _clock(self) -> datetime:
        return clock.from_unix(self.now)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For the length of the block the package's processes are opened with seams, and chance is the seed's."""
        chance = random.Random(self.rng.random())
        with contextlib.ExitStack() as stack:
            for module in (state, duty_context):
                stack.enter_context(patch.object(module, "Database", self._database))
                stack.enter_context(patch.object(module, "open_storage", self._storage))
                stack.enter_context(patch.object(module, "TeamPlaces", self._places))
            stack.enter_context(patch.object(clock, "now", self._clock))
            stack.enter_context(patch.object(tempfile, "tempdir", str(self.folder)))  # in memory, if there is room
            stack.enter_context(patch.object(anyio.to_thread, "run_sync", inline))
            stack.enter_context(patch.object(uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128), version=4)))
            stack.enter_context(patch.object(secrets, "token_bytes", chance.randbytes))
            stack.enter_context(patch.dict(os.environ, {TOKEN_VARIABLE: TOKEN}))
            yield
