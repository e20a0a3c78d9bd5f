"""The types of columns that come from JSON lines: they are known once all rows were seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.sources import SourceRows, typed_lines

STAGED_LINE: Final = "line"


class JsonSchemas:
    """Grows with the rows. ``kept`` are the fields that the target repeats, None for all."""

    def __init__(self, kept: Sequence[str] | None) -> None:
        self._kept = None if kept is None else set(kept)
        self._widened = False
        self.schema = pa.schema([])

    def saw(self, rows: SourceRows, start: int) -> None:
        end = start + len(rows)
        try:
            seen = pa.Table.from_pylist(self._repeated(rows)).schema
            before, self.schema = self.schema, pa.unify_schemas([self.schema, seen], promote_options="permissive")
        except (pa.ArrowException, OverflowError) as error:
            raise _mixed_types(start, end, error) from error
        self._widened |= any(self.schema.field(column.name).type != column.type for column in before)

    def check(self, staged: BinaryIO) -> None:
        """What a later row made of a column must hold the earlier rows too: a large integer is no float."""
        if not self._widened:
            return
        with pq.ParquetFile(staged) as file:
            for group in range(file.num_row_groups):
                batch = file.read_row_group(group, columns=["row", STAGED_LINE])
                start = batch.column(0)[0].as_py()
                try:
                    for some in batch.select([STAGED_LINE]).to_batches():
                        typed_lines(some, self.schema)
                except (pa.ArrowException, OverflowError) as error:
                    raise _mixed_types(start, start + len(batch), error) from error

    def _repeated(self, rows: SourceRows) -> list[dict[str, Any]]:
        objects: list[dict[str, Any]] = rows.used
        names: dict[str, None] = {}
        for row in objects:
            names.update(dict.fromkeys(row))
        kept = [name for name in names if self._kept is None or name in self._kept]
        return [{name: row.get(name) for name in kept} for row in objects]


def _mixed_types(start: int, end: int, error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        f"The rows from {start} to {end - 1} have a field whose values are of another type than in other rows "
        f"({error}), which one column cannot hold. Use a .jsonl target, or leave the field out of passthrough.",
        code="mixed_types",
    )
