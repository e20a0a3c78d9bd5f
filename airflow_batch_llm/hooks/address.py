"""Where the service is and how to be let in, as an Airflow connection says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, urlsplit

from airflow.sdk import Connection

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.client.replicas import base_urls


@dataclass(frozen=True)
class ServiceAddress:
    """A service's URL, the token it takes, and whether it takes more than OpenAI's API has (None: it must be asked).

    ``url`` may be several addresses of one service with commas between them.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    extensions: bool | None = None

    @classmethod
    def of(cls, connection: Connection) -> Self:
        """What ``connection`` names. Raises ValueError where that is no address."""
        token = (connection.password or "").strip() or None
        return cls(",".join(base_urls(_url(connection))), token, _extensions(connection))

    def client(self) -> BatchClient:
        return BatchClient(self.url, self.token)

    def async_client(self) -> AsyncBatchClient:
        return AsyncBatchClient(self.url, self.token)

    def batch_url(self, batch_id: str) -> str:
        return f"{base_urls(self.url)[0]}/v1/batches/{batch_id}"


def _url(connection: Connection) -> str:
    host = (connection.host or "").strip(" ,")
    if not host:
        raise ValueError(
            f"Connection {connection.conn_id!r} has no host. Its host is the address of `batch-llm serve`, "
            "for example http://gpu-host:8765."
        )
    parts = [part.strip() for part in host.split(",") if part.strip()]
    urls = [part if "://" in part else f"{connection.schema or 'http'}://{part}" for part in parts]
    return ",".join(_with_port(url, connection.port, connection.conn_id) for url in urls)


def _extensions(connection: Connection) -> bool | None:
    """The extra ``extensions``: a boolean, or the word for one, as a form gives it."""
    said = connection.extra_dejson.get("extensions")
    if said is None or said == "":
        return None
    if str(said).lower() not in ("true", "false"):
        raise ValueError(f"Connection {connection.conn_id!r} has the extra extensions={said!r}; it is true or false.")
    return str(said).lower() == "true"


def _with_port(url: str, port: int | None, conn_id: str) -> str:
    try:
        split = urlsplit(url)
        named = split.port
    except ValueError as error:
        raise ValueError(f"Connection {conn_id!r} has the host {url!r}, which is no address: {error}.") from error
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(
            f"Connection {conn_id!r} has the host {url!r}, which is no http or https address. "
            "It looks like http://gpu-host:8765."
        )
    return _joined(split, port) if port and named is None else url


def _joined(split: SplitResult, port: int) -> str:
    return split._replace(netloc=f"{split.netloc}:{port}").geturl()
