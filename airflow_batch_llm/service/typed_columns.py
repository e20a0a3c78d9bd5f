"""Placeholder."""

from typing import Any


def arrow_fields(fields: list[Any]) -> list[Any]:
    return []


def typed_columns(texts: Any, valid: Any, fields: list[Any]) -> list[Any]:
    return []
