"""Placeholder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OutputField:
    name: str


def parse_output_schema(schema: dict[str, Any]) -> list[OutputField]:
    raise ValueError("not yet")
