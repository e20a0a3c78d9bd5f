"""Values as a page shows them: in JSON's types, and no longer than a person reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

MOST_CHARACTERS: Final = 4_000
"""Of a text; about a page."""
MOST_ITEMS: Final = 100
"""Of a list or an object."""
MOST_LEVELS: Final = 8
"""How deep lists and objects are shown."""
MOST_TOGETHER: Final = 32_000
"""Characters of all that one shortener makes: a row has one each for input, prompt and output, so that a page of 50
rows is about 5 MB at most."""
MOST_OF_COLUMN: Final = 8_000
"""Of these, for one column of a row: a list in it leaves something for the others."""
MOST_OF_NAME: Final = 200
_PIECE: Final = 16
"""What a value counts that is no text, with the signs around it."""


@dataclass
class Shortener:
    """Makes values short. ``shortened`` says whether anything was cut so far."""

    left: int = MOST_TOGETHER
    """Characters that may still be shown."""
    shortened: bool = False

    def text(self, text: str) -> str:
        """The beginning of a text that can be sent, whatever it has in it."""
        most = max(0, min(MOST_CHARACTERS, self.left))
        if len(text) > most:
            self.shortened = True
            text = text[:most]
        self.left -= len(text)
        return text if text.isascii() else text.encode(errors="replace").decode()

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's columns, each short by itself. Each is named, also where there is no room left for its value."""
        shown: dict[str, Any] = {}
        for name, value in row.items():
            column = Shortener(min(self.left, MOST_OF_COLUMN))
            before = column.left
            shown[Shortener(MOST_OF_NAME).text(str(name))] = column.value(value)
            self.left -= before - column.left
            self.shortened |= column.shortened
        return shown

    def value(self, value: Any) -> Any:
        """The value in JSON's types: dates, decimals and the like as text, bytes as their number."""
        return self._value(value, MOST_LEVELS)

    def _value(self, value: Any, levels: int) -> Any:
        self.left -= 0 if isinstance(value, str) else _PIECE
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
        if levels == 0 or self.left <= 0:
            self.shortened = True
            return "…"
        if isinstance(value, dict):
            items = self._while_room(value.items(), len(value))
            return {self.text(str(name)): self._value(inner, levels - 1) for name, inner in items}
        return [self._value(inner, levels - 1) for inner in self._while_room(value, len(value))]

    def _while_room(self, items: Iterable[Any], count: int) -> Iterator[Any]:
        for place, item in enumerate(items):
            if place == MOST_ITEMS or self.left <= 0:
                self.shortened = True
                return
            yield item
