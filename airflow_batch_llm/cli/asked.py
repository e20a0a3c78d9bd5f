"""What a table is asked, from a command's options."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message


@dataclass(frozen=True)
class Asked:
    """What the options say is asked of each row."""

    prompt: str
    system: str | None
    choices: list[str] | None
    output_schema: Path | None
    embed: bool
    max_tokens: int | None

    @property
    def endpoint(self) -> str | None:
        return EMBEDDINGS if self.embed else None

    def spec(self, sources: list[str], target: str | None, **more: Any) -> DatasetSpec:
        places = [absolute(source) for source in sources]
        named = {} if target is None else {"target": absolute(target)}
        return DatasetSpec.model_validate(
            {"source": places[0] if len(places) == 1 else places, **named, **self._each(), **more}
        )

    def _each(self) -> dict[str, Any]:
        chat = {
            "--system": self.system,
            "--choice": self.choices,
            "--output-schema": self.output_schema,
            "--max-tokens": self.max_tokens,
        }
        if self.embed:
            given = [name for name, value in chat.items() if value]
            if given:
                raise typer.BadParameter(f"{given[0]} does not go with --embed: a vector is no text.")
            return {"input": self.prompt}
        messages = [Message(role="system", content=self.system)] if self.system else []
        return {
            "messages": [*messages, Message(role="user", content=self.prompt)],
            "choices": self.choices or None,
            "output_schema": None if self.output_schema is None else _schema(self.output_schema),
            "parameters": {} if self.max_tokens is None else {"max_tokens": self.max_tokens},
        }


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"The schema {path} cannot be read: {error}.") from error


def batch_create(**fields: Any) -> BatchCreate:
    return BatchCreate.model_validate(fields)


def absolute(place: str) -> str:
    """A local path as the service, which has another working directory, must be told it."""
    return place if "://" in place else f"{Path(place).absolute()}{'/' * place.endswith('/')}"


def absolute_or_none(place: str | None) -> str | None:
    """The same for a place that need not be given."""
    return None if place is None else absolute(place)
