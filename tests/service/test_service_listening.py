"""Where a service listens: what it cannot have is told before anything is opened, and what it has is what answers."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service import app
from airflow_batch_llm.service.listening import address, bound
from airflow_batch_llm.service.places import Places, TeamPlaces
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage import open_storage
from tests.conftest import eventually


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_that_another_has_is_refused_before_anything_is_made(tmp_path: Path, taken: int) -> None:
    settings = ServiceSettings(home=tmp_path / "home", data_roots=(tmp_path,), port=taken)
    with pytest.raises(InvalidRequestError, match=rf"127\.0\.0\.1, port {taken}: Address already in use.*--port"):
        app.serve(settings)
    assert not (tmp_path / "home" / "store.sqlite").exists()


@pytest.mark.parametrize("host", ["203.0.113.1", "no host", "x" * 300])
def test_a_host_that_is_no_address_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="The service cannot listen on"), bound(host, 0):
        pass


def test_what_is_said_to_be_served_is_the_port_that_answers(
    state: ServiceState, settings: ServiceSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with bound("127.0.0.1", 0) as sockets:
        server = app._Server(uvicorn.Config(app.create_app(state), log_level="warning"))
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        assert "serving on" not in caplog.text
        thread.start()
        eventually(lambda: server.started, what="the service listens")
        said = eventually(lambda: [one.getMessage() for one in caplog.records if "serving on" in one.getMessage()])
        url = said[0].split()[2].rstrip(",")
        assert url == address(sockets)
        assert not url.endswith(":0")
        assert httpx.get(f"{url}/healthz").status_code == 200
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("prefix", ["s3://", "s3:///folder", "s3://UPPER", "s3://lake/../x"])
def test_no_bucket_is_every_bucket(tmp_path: Path, prefix: str) -> None:
    settings = ServiceSettings(home=tmp_path, data_roots=(), data_prefixes=(prefix,))
    for made in (lambda: Places((), (prefix,)), lambda: TeamPlaces(settings)):
        with pytest.raises(InvalidRequestError, match="is not of the form s3://bucket"):
            made()
    own = dataclasses.replace(settings, data_prefixes=(), team_roots={"red": (prefix,)})
    with pytest.raises(InvalidRequestError, match="is not of the form s3://bucket"):
        TeamPlaces(own)
    with pytest.raises(InvalidRequestError, match="--storage"):
        open_storage(dataclasses.replace(settings, storage_url=prefix))
