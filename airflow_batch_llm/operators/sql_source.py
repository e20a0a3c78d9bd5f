"""A query's result as the source of a batch: what a Dag says of it. What is done with it is in ``query_result``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

ROWS_PER_FILE: Final = 250_000


@dataclass
class SQLSource:
    """The rows of a query over an Airflow connection.

    The query runs in the Airflow worker, through the hook of the connection (any that common.sql's operators take),
    and its result goes to the service as Parquet files, in the query's order: give it an ORDER BY. Rows are streamed
    with a server-side cursor where the database has them, so memory does not grow with the result; its files are on
    the worker's disk until they are uploaded. The transaction is rolled back after reading.

    Numbers, booleans, text, dates and times keep their types (a time with a time zone becomes UTC), UUIDs become text
    and JSON and arrays JSON text. Anything else (bytes, intervals …), and a column that mixes types, is refused.

    :param conn_id: a connection to a database.
    :param sql: the query (templated).
    :param parameters: values for its placeholders, in the database driver's style (templated).
    :param rows_per_file: at most so many rows in one file.
    """

    template_fields: ClassVar[Sequence[str]] = ("sql", "parameters")

    conn_id: str
    sql: str
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    rows_per_file: int = ROWS_PER_FILE

    def __post_init__(self) -> None:
        for name in ("conn_id", "sql"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"The {name} of a SQLSource is empty.")
        if not isinstance(self.rows_per_file, int) or self.rows_per_file < 1:
            raise ValueError(f"rows_per_file is {self.rows_per_file!r}, and must be a whole number of at least 1.")
