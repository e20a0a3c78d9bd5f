"""What the tests stand on: real stores, a real service over real HTTP, a real pool with real vLLM."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pool as demo_pool
import pytest
import uvicorn
from pool import ROOT, TINY_MODEL, Pool, free_port, wait_for_worker
from sqlalchemy import update
from xdist.scheduler import LoadScopeScheduling

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.models import ChunkState, DutyKind
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.duties import DutyRunner
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import chunks
from tests.postgres import BOTH_STORES, Postgres, running_postgres

PACKAGES = ROOT / "dags_examples" / "data" / "packages.parquet"


class _FolderScheduling(LoadScopeScheduling):
    """The tests of a folder run in one process, so that its pool and its Airflow start once; those of a module do
    where each module starts a pool of its own."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        folder = module.rpartition("/")[0]
        return module if folder.endswith("/own_pools") else folder


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With ``--dist loadgroup``. (xdist's own groups do nothing under pytest 9.2, where node ids cannot be changed.)"""
    return _FolderScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker(BOTH_STORES.name):
        metafunc.parametrize("backend", ["sqlite", "postgres"], indirect=True)


def eventually(check: Callable[[], Any], *, seconds: float = 30.0, what: str = "") -> Any:
    """Asks until the answer is true, and gives it; fails with the last answer after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            pytest.fail(f"Not within {seconds:.0f} s: {what or check}; last answer: {answer!r}")
        time.sleep(0.05)


@dataclass
class RunningService:
    """A service over real HTTP in this process. Its duties run when a test says so, in this process too."""

    settings: ServiceSettings
    state: ServiceState
    token: str
    client: BatchClient
    _runners: dict[tuple[DutyKind, bytes], DutyRunner] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def data_root(self) -> Path:
        return self.settings.data_roots[0]

    def plan(self) -> bool:
        return self._runner(DutyKind.PLAN).run_once()

    def assemble(self) -> bool:
        return self._runner(DutyKind.ASSEMBLE).run_once()

    def end_leases(self) -> None:
        """Moves all leases of chunks into the past, as if their workers had been silent."""
        with self.state.database.writing() as connection:
            connection.execute(update(chunks).where(chunks.c.state == ChunkState.LEASED).values(lease_until=1.0))

    def _runner(self, kind: DutyKind) -> DutyRunner:
        """Kept, as a process keeps its own: to open one costs more than most duties of a test."""
        name = (kind, self.settings.to_json())
        if name not in self._runners:
            self._runners[name] = runner(kind, self.settings)
        return self._runners[name]


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store, for tests that only need one: making it anew each time costs most of their time."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One Postgres for all tests of a process that ask for it."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database that a test runs on: SQLite, unless it is marked with ``BOTH_STORES``."""
    return getattr(request, "param", "sqlite")


@pytest.fixture
def store_url(backend: str, tmp_path: Path, migrated_store: Path, request: pytest.FixtureRequest) -> str:
    """A migrated store of the test's own."""
    if backend == "postgres":
        return request.getfixturevalue("postgres_server").migrated()
    (tmp_path / "home").mkdir(mode=0o700)
    return f"sqlite:///{shutil.copy(migrated_store, tmp_path / 'home')}"


@pytest.fixture
def settings(tmp_path: Path, backend: str, store_url: str) -> ServiceSettings:
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir(mode=0o700, exist_ok=True)
    data.mkdir()
    url = store_url if backend == "postgres" else None
    return ServiceSettings(home=home, data_roots=(data,), port=free_port(), lease_seconds=5.0, database_url=url)


@pytest.fixture
def state(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceState]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    opened = ServiceState.open(settings)
    yield opened
    opened.database.close()


@contextlib.contextmanager
def running_service(state: ServiceState, token: str) -> Iterator[RunningService]:
    """``state`` served on its port by a thread of this process."""
    settings = state.settings
    config = uvicorn.Config(create_app(state), host="127.0.0.1", port=settings.port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    with BatchClient(f"http://127.0.0.1:{settings.port}", token) as client:
        yield RunningService(settings, state, token, client)
    server.should_exit = True
    thread.join()


@pytest.fixture
def service(state: ServiceState) -> Iterator[RunningService]:
    with running_service(state, state.settings.token_path.read_text().strip()) as running:
        yield running


@contextlib.contextmanager
def running_pool(folder: Path, **options: Any) -> Iterator[Pool]:
    """A pool of the test's own, ready for work; ``options`` as :func:`pool.running_pool` takes them."""
    with demo_pool.running_pool(folder, **options) as started:
        wait_for_worker(started)
        yield started


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool for all tests that only use it. A test that kills something starts its own."""
    assert TINY_MODEL.is_dir(), f"There is no {TINY_MODEL}: `make test` makes it."
    with running_pool(tmp_path_factory.mktemp("pool")) as started:
        yield started
