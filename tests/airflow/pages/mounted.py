"""Our pages below an Airflow with users, and a service that they ask."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from airflow import settings
from airflow.api_fastapi.app import get_auth_manager, init_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
from fastapi import FastAPI

from airflow_batch_llm.plugins.batch_llm import PREFIX
from airflow_batch_llm.plugins.lazy_app import LazyApp
from airflow_batch_llm.plugins.page_connections import SERVICES
from tests.airflow.pages.service_double import DEPLOYMENT, TOKEN, ServiceDouble, listening, running_double

PAGE = {"X-Batch-LLM-Page": "1", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
"""What our own page sends with every call."""
TLS = ssl.create_default_context()
"""Made once: it takes longer than a call."""


@dataclass
class Pages:
    """Airflow's part that is ours, as its users reach it."""

    url: str

    def as_(self, user: str | None, role: str = "viewer", **headers: str) -> httpx.Client:
        """A browser of that user on our page; of nobody, where no user is named."""
        cookies = {"_token": _token(user, role)} if user else {}
        return httpx.Client(
            base_url=f"{self.url}{PREFIX}", headers={**PAGE, **headers}, cookies=cookies, timeout=30, verify=TLS
        )


def _token(user: str, role: str) -> str:
    return str(get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=user, role=role)))


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """The tables of this process' own Airflow, with the Dags that the batches come from."""
    import_all_models()
    Base.metadata.create_all(settings.engine)
    with create_session() as session:
        session.merge(DagBundleModel(name="dags"))
        session.flush()
        for dag_id in ("reviews", "salaries"):
            session.merge(DagModel(dag_id=dag_id, bundle_name="dags"))


@pytest.fixture(scope="session")
def mounted(airflow_database: None) -> Iterator[str]:
    host = FastAPI()
    host.mount(PREFIX, LazyApp())
    with listening(host) as url:
        yield url


@pytest.fixture
def auth_manager() -> str:
    return "tests.airflow.pages.airflow_users.PerDagAuthManager"


@pytest.fixture
def pages(mounted: str, auth_manager: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", auth_manager)
    monkeypatch.setenv(
        "AIRFLOW__API_AUTH__JWT_SECRET", "a secret of these tests, long enough for their signatures " * 2
    )
    purge_cached_app()
    init_auth_manager()
    SERVICES.forget()
    yield Pages(mounted)
    purge_cached_app()


@pytest.fixture(scope="session")
def double_server() -> Iterator[ServiceDouble]:
    with running_double() as running:
        yield running


@pytest.fixture
def double(double_server: ServiceDouble, monkeypatch: pytest.MonkeyPatch) -> ServiceDouble:
    """What the connection ``batch_llm_default`` names."""
    double_server.forget()
    connect(monkeypatch, double_server.url)
    return double_server


def connect(monkeypatch: pytest.MonkeyPatch, host: str, conn_id: str = "batch_llm_default", **values: Any) -> None:
    connection = {"conn_type": "batch_llm", "host": host, "password": TOKEN, "extra": {"deployment": DEPLOYMENT}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({**connection, **values}))
    SERVICES.forget()
