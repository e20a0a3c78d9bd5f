"""What Airflow knows of this package without importing the rest of it."""

from __future__ import annotations

from typing import Any, Final

_INTEGRATION: Final = "Batch LLM"


def get_provider_info() -> dict[str, Any]:
    """The provider's description, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-batch-llm",
        "name": _INTEGRATION,
        "description": "LLM steps over tables, done by a pool of your own GPUs running vLLM.",
        "integrations": [{"integration-name": _INTEGRATION, "tags": ["service"]}],
        "hooks": _modules("airflow_batch_llm.hooks.batch_llm"),
        "operators": _modules("airflow_batch_llm.operators.batch_llm"),
        "sensors": _modules("airflow_batch_llm.sensors.batch_llm"),
        "triggers": _modules("airflow_batch_llm.triggers.batch_llm", "airflow_batch_llm.triggers.search"),
        "task-decorators": [
            {"name": "batch_llm", "class-name": "airflow_batch_llm.decorators.batch_llm.batch_llm_task"}
        ],
        "connection-types": [_connection_type()],
        "extra-links": ["airflow_batch_llm.links.batch_llm.BatchLLMLink"],
        "config": {"batch_llm": _options()},
    }


def _options() -> dict[str, Any]:
    return {
        "description": "The pages on LLM batches in Airflow.",
        "options": {
            "page_connections": {
                "description": "The connections whose services the pages may ask, with commas between them. The first "
                "one is asked unless a page names another.",
                "version_added": "0.1.0",
                "type": "string",
                "example": "batch_llm_default,batch_llm_night",
                "default": "batch_llm_default",
            },
        },
    }


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"integration-name": _INTEGRATION, "python-modules": list(names)}]


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "batch_llm",
        "hook-class-name": "airflow_batch_llm.hooks.batch_llm.BatchLLMHook",
        "hook-name": _INTEGRATION,
        "ui-field-behaviour": {
            "hidden-fields": ["login", "schema", "extra"],
            "relabeling": {"host": "Service URL", "password": "Token"},
            "placeholders": {
                "host": "http://gpu-host:8765",
                "port": "8765, also where the URL has it: the test button needs it",
                "password": "the content of the file `token` in the service's home",
            },
        },
        "conn-fields": {
            "deployment": {
                "label": "Deployment",
                "description": "This Airflow's name among those that share the service; [api] base_url unless given",
                "schema": {"type": ["string", "null"]},
            },
            "priority": {
                "label": "Priority",
                "description": "Of tasks that give none: low, normal, high, urgent or a number; by the run's type",
                "schema": {"type": ["string", "null"]},
            },
            "extensions": {
                "label": "Extensions",
                "description": "false for a server with OpenAI's batch API alone; it is asked unless given",
                "schema": {"type": ["string", "null"]},
            },
        },
    }
