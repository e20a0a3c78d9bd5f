"""The Airflow connection of type ``batch_llm``, and clients of the service that it names."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any

from airflow.sdk import BaseHook, Connection
from asgiref.sync import sync_to_async

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError, NotFoundError, UnauthorizedError
from airflow_batch_llm.hooks.address import ServiceAddress
from airflow_batch_llm.hooks.page_address import DEFAULT_CONNECTION, deployment_name
from airflow_batch_llm.wire import ModelList


class BatchLLMHook(BaseHook):
    """Gives clients of the service that an Airflow connection names: ours, or another with OpenAI's batch API.

    The connection's host is the service's URL (or host, port and schema apart), its password the token. The extra
    ``deployment`` names this Airflow among those that share the service; see :attr:`deployment`. The extra ``priority``
    (a number, a word, or a dictionary of these by run type) is that of tasks which give none. The extra
    ``extensions`` (true or false) says whether it is a service of ours with all it can do, where it cannot be asked.
    """

    conn_name_attr = "conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "batch_llm"
    hook_name = "Batch LLM"

    def __init__(self, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id

    @cached_property
    def connection(self) -> Connection:
        return self.get_connection(self.conn_id)

    @cached_property
    def address(self) -> ServiceAddress:
        """URL and token, looked up once: what runs in a signal handler must not ask Airflow's supervisor again."""
        return ServiceAddress.of(self.connection)

    @property
    def deployment(self) -> str:
        """This Airflow's name in the keys of its batches: the extra ``deployment``, or else ``[api] base_url``.

        Two Airflows that share a service and have the same name would take each other's batches for their own.
        """
        return deployment_name(self.connection.extra_dejson.get("deployment"))

    def get_conn(self) -> BatchClient:
        """A new blocking client; the caller closes it."""
        return self.address.client()

    async def aget_conn(self) -> AsyncBatchClient:
        """A new client for an event loop; the caller closes it."""
        # Making one reads the certificates from disk, which would hold up every other trigger.
        return await asyncio.to_thread((await self.aget_address()).async_client)

    async def aget_address(self) -> ServiceAddress:
        """What the connection says now, for an event loop."""
        connection = await _aget_connection(self.conn_id)
        # Reading the extra tells Airflow's supervisor of secrets in it, which blocks: on the loop it would be refused.
        return await sync_to_async(ServiceAddress.of)(connection)

    def has_extensions(self, client: BatchClient) -> bool:
        """Whether the service takes more than OpenAI's API has: tables, keys, holders. One call, at most."""
        said = self.address.extensions
        if said is not None:
            return said
        health = client.health()
        return health is not None and health.extensions

    def test_connection(self) -> tuple[bool, str]:
        """Whether the service answers and takes the token, and a sentence on it for the connection's form."""
        try:
            with self.get_conn() as client:
                if self.has_extensions(client):
                    return True, _greeting(client.url, client.models())
                client.list(limit=1)
                return True, _plain_greeting(client.url)
        except UnauthorizedError as error:
            return False, f"{error} In Airflow it is the connection's password."
        except NotFoundError as error:
            return False, f"There is no batch service at {self.address.url}, only something else that answers: {error}"
        except (BatchLLMError, ValueError) as error:
            return False, str(error)


def _greeting(url: str, models: ModelList) -> str:
    answer = f"The batch service at {url} answers and takes the token."
    if not models.data:
        return f"{answer} No worker serves a model yet: a batch would wait for one."
    names = ", ".join(sorted(model.id for model in models.data))
    count = len(models.data)
    return f"{answer} Its workers serve {count} {'model' if count == 1 else 'models'}: {names}."


def _plain_greeting(url: str) -> str:
    return (
        f"The server at {url} answers and takes the token. It has OpenAI's batch API only: it works through uploaded "
        "request files (input_file_id), and tables need `batch-llm serve`."
    )


async def _aget_connection(conn_id: str) -> Connection:
    try:
        from airflow.providers.common.compat.connection import get_async_connection
    except ImportError:
        return await BaseHook.aget_connection(conn_id)
    return await get_async_connection(conn_id)
