"""A DuckDB for sorts and joins that are larger than memory: it works in a file of a folder and spills beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb

MEMORY: Final = "384MB"
"""What DuckDB may use before it spills."""


def open_database(folder: Path, *, memory: str = MEMORY, threads: int = 2) -> duckdb.DuckDBPyConnection:
    """A DuckDB that reads and writes below ``folder`` alone, and loads nothing from elsewhere."""
    connection = duckdb.connect(
        folder / "work.duckdb",
        config={
            "memory_limit": memory,
            "temp_directory": str(folder / "spilled"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "threads": threads,
            "preserve_insertion_order": False,
        },
    )
    connection.execute(f"SET allowed_directories = [{quoted(folder)}]")
    connection.execute("SET enable_external_access = false")
    return connection


def quoted(path: Path) -> str:
    """A path as a text in SQL."""
    return "'" + str(path).replace("'", "''") + "'"
