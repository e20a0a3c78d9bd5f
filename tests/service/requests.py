"""Request files for the tests, and the ways to get one through a service."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from openai import OpenAI
from openai.types import Batch

from airflow_batch_llm.models import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, RESPONSES
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker

BODIES: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": "Hello"},
    EMBEDDINGS: {"input": "Hello"},
    RESPONSES: {"input": "Hello"},
}


def line(number: int, *, endpoint: str = CHAT_COMPLETIONS, body: Mapping[str, Any] | None = None, **other: Any) -> dict:
    """One request as OpenAI's API has it."""
    content = {"model": "m", **BODIES[endpoint], **(body or {})}
    return {"custom_id": f"row-{number}", "method": "POST", "url": endpoint, "body": content, **other}


def file_of(lines: Iterable[Mapping[str, Any] | str | bytes]) -> bytes:
    """A request file of these lines; a text or bytes stand as they are."""
    return b"\n".join(_line(item) for item in lines) + b"\n"


def _line(item: Mapping[str, Any] | str | bytes) -> bytes:
    item = item if isinstance(item, (str, bytes)) else json.dumps(item)
    return item if isinstance(item, bytes) else item.encode()


def openai_client(service: RunningService, token: str | None = None) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=token or service.token, max_retries=0)


def create(client: OpenAI, content: bytes, *, endpoint: str = CHAT_COMPLETIONS, **more: Any) -> Batch:
    """Uploads a file and submits it."""
    file = client.files.create(file=("requests.jsonl", io.BytesIO(content)), purpose="batch")
    more.setdefault("completion_window", "24h")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, **more)  # type: ignore[arg-type]


def finish(service: RunningService, **worker: Any) -> None:
    """Plans, answers and assembles whatever is there."""
    while service.plan():
        pass
    AnsweringWorker(service, **worker).work()
    while service.assemble():
        pass


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a result file; none where there is no file."""
    return [json.loads(row) for row in client.files.content(file_id).iter_lines()] if file_id else []
