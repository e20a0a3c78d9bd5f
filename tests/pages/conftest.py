"""A Chromium for the tests of a module, pages in it that are watched, and services for them to look at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page
from pool import free_port

from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.listening import address, bound
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings
from tests.conftest import RunningService, eventually
from tests.pages.batches import Below, EveryState, Restartable, every_state, served
from tests.pages.chromium import MISSING, chromium
from tests.pages.looking import SCHEMES, Looks, running_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For a module and no longer: as long as it runs, no test of this process can have an event loop of its own."""
    path = chromium()
    if path is None:
        pytest.skip(MISSING)
    with running_browser(path) as started:
        yield started


@pytest.fixture
def looks(browser: Browser) -> Iterator[Looks]:
    """Opens pages; a test in which something went wrong on one that it did not expect has failed."""
    opened = Looks(browser)
    yield opened
    opened.close()
    assert opened.unexpected() == []


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def page_settings(folder: Path) -> ServiceSettings:
    """Of a service with long leases: nobody extends them between two looks at a page."""
    (folder / "data").mkdir()
    return ServiceSettings(
        home=folder / "home", data_roots=(folder / "data",), port=free_port(), lease_seconds=3_600.0, gpu_hour_price=2.0
    )


def opened_state(folder: Path) -> ServiceState:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        return ServiceState.open(page_settings(folder))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EveryState]:
    """Batches in every state, for tests that change nothing."""
    with served(opened_state(tmp_path_factory.mktemp("shown"))) as service:
        yield every_state(service)


@pytest.fixture
def page_service(tmp_path: Path, looks: Looks) -> Iterator[RunningService]:
    """An empty service of the test's own."""
    with served(opened_state(tmp_path)) as service:
        yield service
        looks.close()  # or its pages would ask a service that has ended


@pytest.fixture
def below_a_path(page_service: RunningService) -> Iterator[str]:
    """The service's address at a proxy that serves it below a path."""
    made = create_app(page_service.state)
    config = uvicorn.Config(Below("/llm", made), lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with bound("127.0.0.1", 0) as sockets:
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        eventually(lambda: server.started, what="the proxy listens")
        yield f"{address(sockets)}/llm"
        made.state.changes.close()
        server.should_exit = True
        thread.join()


@pytest.fixture
def restartable(tmp_path: Path, looks: Looks) -> Iterator[Restartable]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        made = Restartable(page_settings(tmp_path))
        yield made
        looks.close()
        made.stop()


def logged_in(looks: Looks, service: RunningService, scheme: str = "light", *, token: str | None = None) -> Page:
    """The list of batches, after somebody has logged in with that token (else with the service's first)."""
    page = looks.person(scheme, url=service.url).new_page()
    page.goto("/ui/")
    page.get_by_label("Token").fill(token or service.token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Log out").wait_for()
    return page
