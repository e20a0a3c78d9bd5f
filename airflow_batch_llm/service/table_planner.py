"""Planning a table: a source becomes a staged plan of chunks, which one transaction then makes real.

Streams: never holds more than one chunk of rows in memory. A planner that dies leaves nothing but staged bytes that
no plan names, and the next attempt stages its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.plan_stage import ROWS_FILE, PlanStage
from airflow_batch_llm.service.sources import LINE, ROWS, Fault, JsonlSource, SourceRows, typed_lines
from airflow_batch_llm.service.spec import CheckedDataset
from airflow_batch_llm.service.targets import check_carries
from airflow_batch_llm.service.template import NotTextError
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.wire import DatasetSpec
from airflow_batch_llm.worker_wire import ResultLine, RowLine

CHARACTERS_PER_TOKEN: Final = 4
"""The usual rule of thumb for English and code; it only decides where a chunk is cut."""
TOKENS_PER_MESSAGE: Final = 8
ANSWER_TOKENS: Final = 256
"""What an answer is taken to need where no limit is set."""

SCHEMA_FILE: Final = "schema.arrow"
STAGED_LINE: Final = "line"


@dataclass
class Planner:
    """Stages the plan of one table."""

    stage: PlanStage
    dataset: CheckedDataset
    spec: DatasetSpec
    done_before: Iterable[ResultLine] = ()
    """Results of the generation before this batch, which keeps those that are answers."""
    rows: int = 0
    _faulty: int = 0

    def plan(self) -> Plan:
        """Reads the source once and stages what the batch needs of it.

        Raises :class:`InvalidRequestError` where the source cannot be planned at all.
        """
        self._answer_tokens = _answer_tokens(self.spec)
        self._keeps_lines = isinstance(self.dataset.source, JsonlSource) and self._suffix == ".jsonl"
        self._schemas = _Schemas(self.dataset, whole=self.spec.passthrough is None)
        self.stage.keep_answers(self.done_before)
        for line, tokens in self._staged_lines():
            self.stage.add_row(line, tokens)
        if self.rows == 0:
            raise InvalidRequestError(f"Source {self.dataset.source_path} has no rows.", code="empty_source")
        self.stage.finish()
        return Plan(
            storage_key=self.stage.prefix,
            rows_total=self.rows,
            rows_done=self.stage.results_stored,
            rows_failed=self._faulty,
            chunks=self.stage.chunks,
        )

    @property
    def _suffix(self) -> str:
        return self.dataset.target_path.suffix.lower()

    def _staged_lines(self) -> Iterator[tuple[RowLine, int]]:
        """The rows that can be asked, with an estimate of their tokens; all rows are staged on the way."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ROWS_FILE
            writer: pq.ParquetWriter | None = None
            for rows in self.dataset.source.batches(used=self.dataset.used, kept=self.dataset.passthrough):
                staged = _numbered(rows, self.rows)
                writer = writer or pq.ParquetWriter(path, staged.schema, compression="zstd")
                writer.write_batch(staged)
                if not self._keeps_lines:
                    self._schemas.saw(rows, self.rows)
                yield from self._lines(rows)
                self.rows += len(rows)
            if writer:
                writer.close()
                self._schemas.check(path)
                self.stage.storage.put_file(f"{self.stage.prefix}/{ROWS_FILE}", path)
                self._stage_schema()

    def _stage_schema(self) -> None:
        schema = pa.schema([(LINE, pa.large_binary())]) if self._keeps_lines else self._schemas.schema
        if not self._keeps_lines:
            check_carries(self.dataset.target_path, schema)
        self.stage.storage.put(f"{self.stage.prefix}/{SCHEMA_FILE}", schema.serialize().to_pybytes())

    def _lines(self, rows: SourceRows) -> Iterator[tuple[RowLine, int]]:
        for position, values in enumerate(rows.values):
            row = self.rows + position
            fault = rows.faults.get(position)
            messages = fault or self._messages(values)
            if isinstance(messages, Fault):
                self._faulty += 1
                self.stage.add_result(ResultLine(row, "error", code=messages.code, error=messages.message))
                continue
            if self.stage.is_kept(row):
                continue
            characters = sum(len(message["content"]) for message in messages)
            estimate = characters // CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages) + self._answer_tokens
            yield RowLine(row, msgspec.Raw(orjson.dumps({"messages": messages}))), estimate

    def _messages(self, values: dict[str, Any]) -> list[dict[str, str]] | Fault:
        values = values | self.spec.constants
        try:
            return [{"role": role, "content": template.render(values)} for role, template in self.dataset.templates]
        except NotTextError as error:
            return Fault("not_text", str(error))


class _Schemas:
    """The types of the columns that the target repeats; those of JSON lines are known once all were seen."""

    def __init__(self, dataset: CheckedDataset, *, whole: bool) -> None:
        self._typed = not isinstance(dataset.source, JsonlSource)
        self._kept = None if dataset.source.fixed_columns else dataset.passthrough
        self._all = whole
        self._widened = False
        self.schema = pa.schema([])

    def saw(self, rows: SourceRows, start: int) -> None:
        if self._typed:
            self.schema = rows.staged.schema
            return
        end = start + len(rows)
        try:
            seen = pa.Table.from_pylist(self._repeated(rows)).schema
            before, self.schema = self.schema, pa.unify_schemas([self.schema, seen], promote_options="permissive")
        except (pa.ArrowException, OverflowError) as error:
            raise _mixed_types(start, end, error) from error
        self._widened |= any(self.schema.field(column.name).type != column.type for column in before)

    def check(self, staged: Path) -> None:
        """What a later row made of a column must hold the earlier rows too: a large integer is no float."""
        if not self._widened:
            return
        start = 0
        with pq.ParquetFile(staged) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=[STAGED_LINE], use_threads=False):
                end = start + len(batch)
                try:
                    typed_lines(batch, self.schema)
                except (pa.ArrowException, OverflowError) as error:
                    raise _mixed_types(start, end, error) from error
                start = end

    def _repeated(self, rows: SourceRows) -> list[dict[str, Any]]:
        names: dict[str, None] = {}
        for row in rows.values:
            names.update(dict.fromkeys(row))
        kept = [name for name in names if self._all or name in (self._kept or ())]
        return [{name: row.get(name) for name in kept} for row in rows.values]


def _mixed_types(start: int, end: int, error: Exception) -> InvalidRequestError:
    return InvalidRequestError(
        f"The rows from {start} to {end - 1} have a field whose values are of another type than in other rows "
        f"({error}), which one column cannot hold. Use a .jsonl target, or leave the field out of passthrough.",
        code="mixed_types",
    )


def _numbered(rows: SourceRows, start: int) -> pa.RecordBatch:
    """The staged columns under names of our own, so that none can clash, behind their row numbers."""
    staged = rows.staged
    numbers = pa.array(range(start, start + len(rows)), pa.int64())
    names = ["row", *(STAGED_LINE if name == LINE else f"column_{i}" for i, name in enumerate(staged.schema.names))]
    fields = [field.with_name(name) for name, field in zip(names[1:], staged.schema, strict=True)]
    schema = pa.schema([pa.field("row", pa.int64()), *fields])
    return pa.record_batch([numbers, *staged.columns], schema=schema)


def _answer_tokens(spec: DatasetSpec) -> int:
    if spec.choices:
        return max(len(choice) for choice in spec.choices) // CHARACTERS_PER_TOKEN + 1
    limit = spec.parameters.get("max_completion_tokens", spec.parameters.get("max_tokens", ANSWER_TOKENS))
    return limit if isinstance(limit, int) else ANSWER_TOKENS
