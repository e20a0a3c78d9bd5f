"""Values as a page shows them: in JSON's types, and no longer than a person reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST_CHARACTERS: Final = 4_000
"""Of a text; about a page."""
MOST_ITEMS: Final = 100
"""Of a list or an object."""
MOST_LEVELS: Final = 8
"""How deep lists and objects are shown."""
_PIECES: Final = 2_000
"""Values in a value, however they nest."""


@dataclass
class Shortener:
    """Makes values short. ``shortened`` says whether anything was cut so far."""

    shortened: bool = False
    _left: int = _PIECES

    def text(self, text: str) -> str:
        """The beginning of a text that can be sent, whatever it has in it."""
        if len(text) > MOST_CHARACTERS:
            self.shortened = True
            text = text[:MOST_CHARACTERS]
        return text if text.isascii() else text.encode(errors="replace").decode()

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's columns, each short by itself."""
        return {self.text(str(name)): self.value(value) for name, value in row.items()}

    def value(self, value: Any) -> Any:
        """The value in JSON's types: dates, decimals and the like as text, bytes as their number."""
        self._left = _PIECES
        return self._value(value, MOST_LEVELS)

    def _value(self, value: Any, levels: int) -> Any:
        self._left -= 1
        match value:
            case None | bool():
                return value
            case str():
                return self.text(value)
            case int():
                return value if -(2**53) <= value <= 2**53 else str(value)  # a browser's numbers end there
            case float():
                return value if math.isfinite(value) else str(value)
            case bytes() | bytearray() | memoryview():
                return f"({len(value):,} bytes)"
            case dict() | list() | tuple():
                return self._nested(value, levels)
        return self.text(str(value))

    def _nested(self, value: Any, levels: int) -> Any:
        if levels == 0 or self._left <= 0:
            self.shortened = True
            return "…"
        if len(value) > MOST_ITEMS:
            self.shortened = True
        if isinstance(value, dict):
            items = list(value.items())[:MOST_ITEMS]
            return {self.text(str(name)): self._value(inner, levels - 1) for name, inner in items}
        return [self._value(inner, levels - 1) for inner in value[:MOST_ITEMS]]
