"""The Airflow plugin: the pages on batches, and the link to a task's batch.

Every process of Airflow imports this module, so it imports nothing of what answers requests: see :mod:`.lazy_app`.
"""

from __future__ import annotations

from typing import Any, Final

from airflow_batch_llm import __version__
from airflow_batch_llm.hooks.airflow_names import AirflowPlugin
from airflow_batch_llm.hooks.page_address import ROUTE, base_path
from airflow_batch_llm.links.batch_llm import BatchLLMLink
from airflow_batch_llm.plugins.lazy_app import LazyApp

PREFIX: Final = "/batch-llm"
TASK_ROUTE: Final = "llm-task-batches"
RUN_ROUTE: Final = "llm-run-batches"
"""Airflow drops an app whose route another one has, whatever their destinations are."""
SHOWN_OF: Final = ["BatchLLMOperator", "BatchLLMSensor", "@task.batch_llm"]
"""The operators whose tasks have the tab; before 3.4 Airflow shows it on every task."""


def _file(name: str, **query: str) -> str:
    """The path of a file of the pages, by which no older version of it is found in a cache."""
    text = "&".join(f"{key}={value}" for key, value in {"v": __version__, **query}.items())
    return f"{base_path()}{PREFIX}/static/{name}?{text}"


def _react_app(name: str, destination: str, route: str, **more: Any) -> dict[str, Any]:
    """One place where Airflow shows the pages.

    Each has a URL of its own: from 3.2 on Airflow forgets the component before it imports a bundle, and a module that
    is imported a second time does not run again.
    """
    return {
        "name": name,
        "bundle_url": _file("airflow.js", at=destination),
        "destination": destination,
        "url_route": route,
        "icon": _file("nav.svg"),
        "icon_dark_mode": _file("nav-dark.svg"),
        **more,
    }


class BatchLLMPlugin(AirflowPlugin):
    """What this package adds to Airflow beside its provider."""

    name = "batch_llm"
    operator_extra_links = [BatchLLMLink()]  # noqa: RUF012 (Airflow's own field)
    fastapi_apps = [{"name": "LLM batches", "app": LazyApp(), "url_prefix": PREFIX}]  # noqa: RUF012 (the same)
    react_apps = [  # noqa: RUF012 (the same)
        _react_app("LLM batches", "nav", ROUTE, category="browse"),
        _react_app("LLM batches", "dag_run", RUN_ROUTE),
        _react_app("LLM batch", "task_instance", TASK_ROUTE, applies_to={"operator_name": SHOWN_OF}),
    ]
