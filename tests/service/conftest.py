"""One service for all tests of this folder, emptied for each: to start and to end one takes a third of a second."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool import free_port
from sqlalchemy import delete

from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.store.tables import metadata, tokens
from tests.conftest import RunningService, running_service
from tests.postgres import Postgres
from tests.s3_server import Bucket, s3, s3_server

__all__ = ["s3", "s3_server"]


@pytest.fixture(scope="session")
def standing_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with _standing(tmp_path_factory.mktemp("standing"), None) as running:
        yield running


@pytest.fixture(scope="session")
def standing_on_postgres(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres
) -> Iterator[RunningService]:
    with _standing(tmp_path_factory.mktemp("standing"), postgres_server.migrated()) as running:
        yield running


@contextlib.contextmanager
def _standing(folder: Path, database_url: str | None) -> Iterator[RunningService]:
    (folder / "data").mkdir()
    settings = ServiceSettings(
        home=folder / "home", data_roots=(folder / "data",), port=free_port(), database_url=database_url
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as running:
        yield running


@pytest.fixture
def service(backend: str, request: pytest.FixtureRequest) -> RunningService:
    """The standing service with nothing in its store, its storage and its data root but its token."""
    name = "standing_on_postgres" if backend == "postgres" else "standing_service"
    standing_service: RunningService = request.getfixturevalue(name)
    with standing_service.state.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            if table is not tokens:
                connection.execute(delete(table))
    for folder in (standing_service.data_root, standing_service.settings.storage_root):
        shutil.rmtree(folder)
        folder.mkdir()
    return dataclasses.replace(standing_service)


@pytest.fixture(params=["local", "s3"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningService]:
    """A service with its own bytes in a directory, and one with them on S3; its tables lie in a directory."""
    if request.param == "local":
        yield request.getfixturevalue("service")
        return
    bucket: Bucket = request.getfixturevalue("s3")
    (tmp_path / "data").mkdir()
    settings = ServiceSettings(
        home=tmp_path / "home",
        data_roots=(tmp_path / "data",),
        storage_url=bucket.uri("own/bytes"),
        port=free_port(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as running:
        yield running
