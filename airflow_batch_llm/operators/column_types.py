"""The type of a query's column, found from its values: it widens as they come, and never bends one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

if TYPE_CHECKING:
    import pyarrow as pa

EXACT: Final = 2**53
"""Up to here every whole number is a float, too."""
LONGEST_INTEGER: Final = 2**63
INTEGER_DIGITS: Final = 19
MOST_DIGITS: Final = 76

_KINDS: Final[dict[type, str]] = {
    bool: "boolean",
    int: "integer",
    float: "float",
    Decimal: "decimal",
    str: "text",
    datetime: "timestamp",
    date: "date",
    time: "time",
    UUID: "text",
    dict: "text",
    list: "text",
}
_NUMBERS: Final = ("integer", "float", "decimal")


@dataclass
class ColumnType:
    """One column: what its values have been so far."""

    name: str
    kind: str | None = None
    """None while all values were null."""
    zoned: bool = False
    """Of timestamps: whether they name an instant."""
    digits: int = 0
    scale: int = 0
    """Of decimals: most digits before and after the point."""
    widest: int = 0
    """Of integers: the largest magnitude."""

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type that holds all values so far; text where there were none."""
        import pyarrow as pa

        match self.kind:
            case "decimal":
                return (
                    pa.decimal128(38, self.scale) if self.digits + self.scale <= 38 else pa.decimal256(76, self.scale)
                )
            case "timestamp":
                return pa.timestamp("us", tz="UTC" if self.zoned else None)
            case "boolean":
                return pa.bool_()
            case "integer":
                return pa.int64()
            case "float":
                return pa.float64()
            case "date":
                return pa.date32()
            case "time":
                return pa.time64("us")
        return pa.string()

    def array(self, values: Sequence[Any], *, first: int) -> pa.Array:
        """The values as an array of their own narrowest type, which widens the column's; ``first`` is their row.

        Raises ValueError for a value that the column cannot hold as it is.
        """
        import pyarrow as pa

        found = {kind: self._known(kind, values, first) for kind in set(map(type, values)) if kind is not type(None)}
        if not found:
            return pa.nulls(len(values))
        for kind, word in found.items():
            self._look(kind, word, values, first)
        shape = _SHAPES.get(self.kind or "", _as_it_is)
        plain = [None if value is None else shape(value) for value in values]
        return pa.array(plain, self.arrow)

    def _known(self, kind: type, values: Sequence[Any], first: int) -> str:
        word = next((_KINDS[known] for known in kind.__mro__ if known in _KINDS), None)
        if word is not None:
            return word
        what = "bytes" if issubclass(kind, (bytes, bytearray, memoryview)) else f"values of type {kind.__name__}"
        row = next(at for at, value in enumerate(values, start=first) if type(value) is kind)
        return self._refuse(f"holds {what} (row {row})", "Cast it to text or a number in the query, or leave it out")

    def _look(self, kind: type, word: str, values: Sequence[Any], first: int) -> None:
        """Takes notice of the values of one Python type."""
        ours: list[tuple[int, Any]] = [
            (at, value) for at, value in enumerate(values, start=first) if type(value) is kind
        ]
        match word:
            case "integer":
                self.widest = max(self.widest, *(abs(value) for _, value in ours))
                word = "integer" if self.widest < LONGEST_INTEGER else "decimal"
                self.digits = max(self.digits, INTEGER_DIGITS, len(str(self.widest)))
            case "decimal":
                self._measure(ours)
            case "timestamp" | "time":
                self._check_zone(word, ours)
        self._join(word, ours[0][0])
        if self.kind == "float" and self.widest > EXACT:
            self._refuse(
                f"has floats and the whole number {self.widest}, which no float is (up to row {ours[-1][0]})",
                "Cast it to one type in the query",
            )
        if self.kind == "decimal" and self.digits + self.scale > MOST_DIGITS:
            self._refuse(
                f"needs {self.digits} digits before the point and {self.scale} after it, and {MOST_DIGITS} in all go",
                "Round it in the query",
            )

    def _measure(self, ours: list[tuple[int, Any]]) -> None:
        for row, value in ours:
            exponent = value.as_tuple().exponent
            if not isinstance(exponent, int):
                self._refuse(f"has the decimal {value} (row {row}), which is no number", "Leave such rows out")
            self.scale = max(self.scale, -exponent)
            self.digits = max(self.digits, value.adjusted() + 1)

    def _check_zone(self, word: str, ours: list[tuple[int, Any]]) -> None:
        for row, value in ours:
            zoned = value.tzinfo is not None
            if zoned and word == "time":
                self._refuse(f"has times of day with a time zone (row {row})", "Cast it to a timestamp or to text")
            if self.kind == "timestamp" and zoned != self.zoned:
                self._refuse(f"has timestamps with and without a time zone (row {row})", "Cast it to one of the two")
            if word == "timestamp" and self.kind is None:
                self.kind, self.zoned = word, zoned

    def _join(self, word: str, row: int) -> None:
        if self.kind is None or self.kind == word:
            self.kind = word
        elif {self.kind, word} == {"integer", "float"}:
            self.kind = "float"
        elif {self.kind, word} == {"integer", "decimal"}:
            self.kind = "decimal"
        else:
            self._refuse(f"has values of the types {self.kind} and {word} (row {row})", "Cast it to one type")

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise ValueError(f"Column {self.name!r} of the query {what}. {remedy}. Nothing was submitted.")


def _as_it_is(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


_SHAPES: Final[dict[str, Callable[[Any], Any]]] = {
    "text": _text,
    "float": float,
    "decimal": Decimal,
    "timestamp": lambda value: value.astimezone(UTC) if value.tzinfo is not None else value,
}
