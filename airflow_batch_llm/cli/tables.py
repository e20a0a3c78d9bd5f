"""Lists of things on the terminal, or for a program that reads them."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from rich.measure import Measurement
from rich.table import Column, Table

from airflow_batch_llm.cli.common import out

WIDE: Final = 120
"""Columns of a terminal that has room for more than the most needed."""
NARROW: Final = 80
"""Columns of a terminal in which a list can still be folded; in a narrower one its lines run on."""
_NO_LIMIT: Final = 100_000


def is_short_of_room() -> bool:
    """Whether what is less needed has to be left out. A pipe takes everything."""
    return out.is_terminal and out.width < WIDE


def listing(first: str, *others: str, whole: Container[str] = ()) -> Table:
    """A table whose first column is what other commands need: the ids. No text is cut; those that are not to be
    ``whole`` in one line are folded where the terminal is too narrow."""
    columns = [Column(first, no_wrap=True, overflow="fold")]
    columns += [Column(name, no_wrap=name in whole, overflow="fold") for name in others]
    return Table(*columns, box=None, padding=(0, 2, 0, 0), pad_edge=False)


def show(table: Table) -> None:
    """Prints a list folded into the terminal. Where there is none, each row is one line, as long as it is."""
    if not out.is_terminal or out.width < NARROW:
        table.width = Measurement.get(out, out.options.update(width=_NO_LIMIT), table).maximum
    out.print(table, crop=False)
