"""Where in Airflow's own pages those on batches are."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode, urlsplit

from airflow_batch_llm.hooks.airflow_names import conf
from airflow_batch_llm.hooks.names import fitted

ROUTE: Final = "llm-batches"
"""Below ``/plugin/`` in Airflow's pages."""
DEFAULT_CONNECTION: Final = "batch_llm_default"


def base_url() -> str:
    """``[api] base_url`` without a slash at its end; empty where it is not set."""
    return str(conf.get("api", "base_url", fallback=None) or "").rstrip("/")


def base_path() -> str:
    """The path that Airflow is below; empty for the root. Whoever calls Airflow by another name has this path, too."""
    return urlsplit(base_url()).path.rstrip("/")


def batch_page(batch_id: str, conn_id: str) -> str:
    """The page of a batch; without a host where Airflow does not know its own."""
    query = {"batch": batch_id} if conn_id == DEFAULT_CONNECTION else {"batch": batch_id, "conn_id": conn_id}
    return f"{base_url()}/plugin/{ROUTE}?{urlencode(query)}"


def deployment_name(named: str | None) -> str:
    """This Airflow's name at a service: what the connection's extra ``deployment`` says, or else its address; where
    there is neither, the one that every such Airflow has."""
    return str(named or base_url() or "airflow").rstrip("/")


def own_deployments(named: str | None) -> list[str]:
    """The names by which batches at a service are known to be of this Airflow: those of common.ai's tasks know of no
    connection's extra. Empty where it has no name of its own: it would take another Airflow's batches for its own.
    """
    return sorted({fitted(deployment_name(name)) for name in (named, base_url()) if name})
