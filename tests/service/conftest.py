"""One service for all tests of this folder, emptied for each: to start and to end one takes a third of a second."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from pool import free_port
from sqlalchemy import delete

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from airflow_batch_llm.store.tables import metadata, tokens
from tests.conftest import RunningService, eventually


@pytest.fixture(scope="session")
def standing_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("standing")
    (folder / "data").mkdir()
    settings = ServiceSettings(home=folder / "home", data_roots=(folder / "data",), port=free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        state = ServiceState.open(settings)
    server = uvicorn.Server(
        uvicorn.Config(create_app(state), host="127.0.0.1", port=settings.port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    token = settings.token_path.read_text().strip()
    with BatchClient(f"http://127.0.0.1:{settings.port}", token) as client:
        yield RunningService(settings, state, token, client)
    server.should_exit = True
    thread.join()


@pytest.fixture
def service(standing_service: RunningService) -> RunningService:
    """The standing service with nothing in its store, its storage and its data root but its token."""
    with standing_service.state.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            if table is not tokens:
                connection.execute(delete(table))
    for folder in (standing_service.data_root, standing_service.settings.storage_root):
        shutil.rmtree(folder)
        folder.mkdir()
    return dataclasses.replace(standing_service)
