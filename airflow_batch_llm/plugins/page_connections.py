"""Which services the pages may ask, and with what token: connections that the operator of Airflow lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined] # it passes it on since 3.2
from airflow.models import Connection
from fastapi import Depends, Query

from airflow_batch_llm.hooks.address import ServiceAddress
from airflow_batch_llm.hooks.airflow_names import conf
from airflow_batch_llm.hooks.page_address import DEFAULT_CONNECTION, own_deployments
from airflow_batch_llm.plugins.kept import Kept
from airflow_batch_llm.plugins.refusals import Refusal
from airflow_batch_llm.plugins.viewer import ViewerDep

OPTION: Final = "[batch_llm] page_connections"
_HOW_TO_LIST: Final = f"The option {OPTION} lists those that the pages may use"


@dataclass(frozen=True)
class PageService:
    """A service that the pages ask, as a connection names it."""

    conn_id: str
    address: ServiceAddress
    deployments: tuple[str, ...]
    """Under which names batches of this Airflow stand there; empty where it has no name of its own."""

    def __str__(self) -> str:
        return f"The batch service at {_without_secrets(self.address.url)} (connection {self.conn_id})"

    @property
    def how_to_name(self) -> str:
        """Two sentences, for where ``deployments`` is empty."""
        return (
            "This Airflow has no name of its own at the service, so its Dags are not known from another Airflow's. "
            f"[api] base_url gives it one, or the extra `deployment` of the connection {self.conn_id}."
        )


def listed_connections() -> list[str]:
    """The ids of the connections that the pages may use; the first one is asked where none is named."""
    listed = str(conf.get("batch_llm", "page_connections", fallback=None) or DEFAULT_CONNECTION)
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip())) or [DEFAULT_CONNECTION]


def page_service(viewer: ViewerDep, conn_id: Annotated[str | None, Query(max_length=250)] = None) -> PageService:
    """The service that a call names. It reads Airflow's database, so FastAPI has a thread call it.

    Raises :class:`Refusal` for a connection that is not listed: else a user could send the tokens of any connection
    to its host. (It asks for the user only to be asked after them.)
    """
    listed = listed_connections()
    wanted = conn_id or listed[0]
    if wanted not in listed:
        raise Refusal(
            403,
            "connection_not_listed",
            f"The pages do not use the connection {wanted}. {_HOW_TO_LIST}: {', '.join(listed)}. Whoever runs Airflow "
            f"adds one there (AIRFLOW__BATCH_LLM__PAGE_CONNECTIONS, with commas) for the api-server.",
        )
    return SERVICES.of(wanted)


def own_names(viewer: ViewerDep, conn_id: Annotated[str | None, Query(max_length=250)] = None) -> list[str]:
    """The names of this Airflow at the service that a call names; none where there is no such connection."""
    try:
        return list(page_service(viewer, conn_id).deployments)
    except Refusal:
        return []


def _service(conn_id: str) -> PageService:
    try:
        connection = Connection.get_connection_from_secrets(conn_id)
    except AirflowNotFoundException as error:
        raise Refusal(
            404,
            "no_connection",
            f"Airflow has no connection {conn_id}. Add one of the type Batch LLM with this id: the service's address "
            f"as host and its token as password. {_HOW_TO_LIST}.",
        ) from error
    except PermissionError as error:
        raise Refusal(
            502,
            "no_connection",
            f"A secrets backend does not give Airflow's api-server the connection {conn_id} ({type(error).__name__}).",
        ) from error
    try:
        address = ServiceAddress.of(connection)
    except ValueError as error:
        raise Refusal(404, "no_connection", str(error)) from error
    named = connection.extra_dejson.get("deployment")
    return PageService(conn_id, address, tuple(own_deployments(named)))


def _without_secrets(urls: str) -> str:
    """The addresses without the user and password that somebody may have put into one."""
    split = [urlsplit(url) for url in urls.split(",")]
    return ",".join(url._replace(netloc=url.netloc.rpartition("@")[2]).geturl() for url in split)


SERVICES: Final = Kept(_service)
"""By connection. A look-up may ask a secrets backend, and Airflow logs a warning for each in its environment."""
ServiceDep = Annotated[PageService, Depends(page_service)]
OwnNamesDep = Annotated[list[str], Depends(own_names)]
