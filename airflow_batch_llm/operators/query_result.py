"""From a query to Parquet files of one schema, through Airflow's database hooks.

Streams: holds some thousand rows, whatever the size of the result. The files lie on disk until the last row is read,
because only then every column's type is known: a file that was written with another one is written again.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseHook

from airflow_batch_llm.operators.column_types import ColumnType
from airflow_batch_llm.operators.sql_source import SQLSource

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

log = logging.getLogger(__name__)

ROWS: Final = 5_000
"""Rows fetched at once."""
GROUP_BYTES: Final = 16 << 20
"""Values kept until they are written as a row group."""

Row = Sequence[Any]


def write_query_result(source: SQLSource, folder: Path) -> list[Path]:
    """The result as files below ``folder``, in the query's order.

    Raises ValueError for a result without rows, and for one that no table can hold as it is, with column and row.
    """
    with _result(source) as (names, blocks):
        _check_names(names)
        parts = _Parts(folder, [ColumnType(name) for name in names], source.rows_per_file)
        for block in blocks:
            parts.add(block)
    if not parts.rows:
        raise ValueError(
            f"The query of the SQLSource on {source.conn_id!r} gives no rows: there is nothing to ask. "
            "Nothing was submitted."
        )
    return parts.finished()


@dataclass
class _Parts:
    """The files so far, and the rows that wait to be written."""

    folder: Path
    columns: list[ColumnType]
    rows_per_file: int
    _written: list[tuple[Path, pa.Schema]] = field(default_factory=list)
    _waiting: list[pa.Table] = field(default_factory=list)
    _writer: pq.ParquetWriter | None = None
    _file_rows: int = 0
    rows: int = 0

    def add(self, block: Sequence[Row]) -> None:
        for piece in self._cut(block):
            self._waiting.append(self._table(piece))
            self.rows += len(piece)
            full = self._file_rows + sum(table.num_rows for table in self._waiting) >= self.rows_per_file
            if full or sum(table.nbytes for table in self._waiting) >= GROUP_BYTES:
                self._flush()
            if full:
                self._close()

    def finished(self) -> list[Path]:
        """All files, each with the schema that the whole result has."""
        if self._waiting:
            self._flush()
        self._close()
        schema = self._schema()
        for path, written in self._written:
            if not written.equals(schema):
                _write_again(path, schema)
        return [path for path, _ in self._written]

    def _cut(self, block: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """The block in pieces that do not go beyond the end of a file."""
        left = block
        while left:
            room = self.rows_per_file - self._file_rows - sum(table.num_rows for table in self._waiting)
            yield left[:room]
            left = left[room:]

    def _table(self, piece: Sequence[Row]) -> pa.Table:
        import pyarrow as pa

        values = zip(*piece, strict=True)
        arrays = [column.array(of, first=self.rows) for column, of in zip(self.columns, values, strict=True)]
        return pa.table(arrays, names=[column.name for column in self.columns])

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(column.name, column.arrow) for column in self.columns])

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._schema()
        if self._writer is None or not self._writer.schema.equals(schema):
            self._close()
            path = self.folder / f"part-{len(self._written):05}.parquet"
            self._writer = pq.ParquetWriter(path, schema, compression="zstd")
            self._written.append((path, schema))
        group = pa.concat_tables([table.cast(schema) for table in self._waiting])
        self._writer.write_table(group, row_group_size=group.num_rows)
        self._file_rows += group.num_rows
        self._waiting = []

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._file_rows = None, 0


def _write_again(path: Path, schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    new = path.with_suffix(".new")
    with pq.ParquetFile(path) as old, pq.ParquetWriter(new, schema, compression="zstd") as writer:
        for group in range(old.num_row_groups):
            writer.write_table(pa.Table.cast(old.read_row_group(group), schema))
    new.replace(path)


@contextmanager
def _result(source: SQLSource) -> Iterator[tuple[list[str], Iterator[Sequence[Row]]]]:
    """The result's column names, and its rows some thousand at a time."""
    hook: Any = BaseHook.get_hook(source.conn_id)
    engine = _engine(hook, source.conn_id)
    if engine is None:
        with closing(hook.get_conn()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(*_statement(source))
            _check_rows(cursor.description is not None, source)
            names = [str(column[0]) for column in cursor.description]
            yield names, iter(lambda: cursor.fetchmany(ROWS), [])
        return
    try:
        with engine.connect() as connection:
            # Without parameters the driver must not look for placeholders: a LIKE '%x' has none.
            streaming = connection.execution_options(stream_results=True, yield_per=ROWS, no_parameters=True)
            result = streaming.exec_driver_sql(*_statement(source))
            _check_rows(result.returns_rows, source)
            yield list(result.keys()), result.partitions(ROWS)
    finally:
        engine.dispose()


def _engine(hook: Any, conn_id: str) -> Any:
    """The hook's SQLAlchemy engine: it knows how each driver streams. None where the hook has none that works."""
    if not hasattr(hook, "get_sqlalchemy_engine"):
        if not hasattr(hook, "get_conn"):
            raise ValueError(f"Connection {conn_id!r} is none to a database: its hook is {type(hook).__name__}.")
        return None
    from sqlalchemy.exc import ArgumentError

    try:
        return hook.get_sqlalchemy_engine({"hide_parameters": True})
    except (ArgumentError, ImportError, NotImplementedError, _missing_feature()) as error:
        log.info(
            "Connection %s has no SQLAlchemy engine (%s). Its cursor is read instead; whether that streams is up to "
            "its driver.",
            conn_id,
            error,
        )
        return None


def _missing_feature() -> type[Exception]:
    from airflow.exceptions import AirflowOptionalProviderFeatureException

    return AirflowOptionalProviderFeatureException


def _statement(source: SQLSource) -> tuple[Any, ...]:
    if not source.parameters:
        return (source.sql,)
    if isinstance(source.parameters, (list, tuple)):
        return source.sql, tuple(source.parameters)
    return source.sql, dict(source.parameters)


def _check_rows(returns_rows: bool, source: SQLSource) -> None:
    if not returns_rows:
        raise ValueError(
            f"The statement of the SQLSource on {source.conn_id!r} gives no rows. It must be a query. Nothing was "
            "submitted, and its transaction is rolled back."
        )


def _check_names(names: list[str]) -> None:
    twice = [name for name, same in itertools.groupby(sorted(names)) if len(list(same)) > 1]
    if twice:
        raise ValueError(
            f"The query gives more than one column named {twice[0]!r}. Give one of them another name, with AS. "
            "Nothing was submitted."
        )
