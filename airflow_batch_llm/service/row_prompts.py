"""What the engine was asked for a row: as the plan has stored it, or rendered again from the row's columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pyarrow as pa

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.page_wire import ShownMessage
from airflow_batch_llm.service.rendering import Renderer
from airflow_batch_llm.service.short_values import MOST_OF_NAME, Shortener
from airflow_batch_llm.service.sources import SourceRows
from airflow_batch_llm.service.template import Template
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.wire import DatasetSpec
from airflow_batch_llm.worker_wire import RowLine, unpack

MOST_MESSAGES: Final = 50
"""Of a conversation; what comes after them is cut."""

Messages = list[tuple[str, str]]
"""Roles and texts, none of them cut yet."""


@dataclass(frozen=True)
class Prompts:
    """Renders the templates of one table over single rows."""

    roles: list[str]
    templates: list[Template]
    constants: Mapping[str, Any]

    @classmethod
    def of(cls, spec: DatasetSpec, endpoint: str) -> Prompts:
        asked = [("input", spec.input or "")] if endpoint == EMBEDDINGS else _messages(spec)
        return cls([role for role, _ in asked], [Template.parse(text) for _, text in asked], spec.constants)

    @property
    def used(self) -> set[str]:
        """The columns that they need."""
        return {name for template in self.templates for name in template.names} - set(self.constants)

    def rendered(self, values: Mapping[str, Any], partitions: Mapping[str, str | None]) -> Messages | str:
        """The prompt of one row; or, where it cannot be asked, a sentence that says why."""
        rows = SourceRows(_NOTHING, [dict(values)])
        blocks = list(Renderer(self.templates, {**partitions, **self.constants}).render(rows))
        if rows.faults:
            return rows.faults[0].message
        return [(role, text[0].as_py()) for role, text in zip(self.roles, blocks[0][1], strict=True)]


def stored_prompts(storage: Storage, key: str, rows: Collection[int]) -> Iterator[tuple[int, Messages]]:
    """The prompts of some rows of one chunk, whose lines are read no further than the last of them."""
    left = set(rows)
    with storage.open(key) as stream:
        for line in unpack(stream, RowLine):
            if line.row in left:
                left.remove(line.row)
                yield line.row, body_messages(msgspec.json.decode(line.body))
            if not left:
                return


def first_row(storage: Storage, key: str) -> int:
    """The number of a chunk's first row."""
    with storage.open(key) as stream:
        return next(unpack(stream, RowLine)).row


def shown_messages(messages: Messages, shortener: Shortener) -> list[ShownMessage]:
    """The messages as a page shows them."""
    if len(messages) > MOST_MESSAGES:
        shortener.shortened = True
    return [
        ShownMessage(role=Shortener(MOST_OF_NAME).text(role), content=shortener.text(text))
        for role, text in messages[:MOST_MESSAGES]
    ]


def body_messages(body: Mapping[str, Any]) -> Messages:
    """The prompt in a request's body, of whatever endpoint."""
    found: Messages = []
    if isinstance(body.get("instructions"), str):
        found.append(("instructions", body["instructions"]))
    if isinstance(body.get("messages"), list):
        return found + [_message(message, "user") for message in body["messages"]]
    name = "prompt" if "prompt" in body else "input"
    asked = body.get(name)
    if isinstance(asked, list) and asked and all(isinstance(message, dict) for message in asked):
        return found + [_message(message, name) for message in asked]
    return found if asked is None else [*found, (name, _content(asked))]


def _messages(spec: DatasetSpec) -> Messages:
    return [(message.role, message.content) for message in spec.messages]


def _message(message: Any, role: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        return role, _content(message)
    return str(message.get("role", role)), _content(message.get("content", message))


def _content(content: Any) -> str:
    """A message's text; of one in parts, their texts, with anything else as the word for what it is."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        return "\n".join(_part(part) for part in content)
    return msgspec.json.encode(content).decode()


def _part(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    return text if isinstance(text, str) else f"({part.get('type', 'object')})"


_NOTHING: Final = pa.record_batch([pa.nulls(1)], names=[""]).select([])
