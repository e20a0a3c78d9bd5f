"""Planning a table: its rows become a staged plan of chunks, which one transaction then makes real.

Streams: never holds more than a block of rows in memory. A planner that dies leaves nothing but staged bytes that
no plan names, and the next attempt stages its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import EMBEDDINGS, TOKENIZE
from airflow_batch_llm.service.asked_rows import AskedRows, RowKeys, body_shape
from airflow_batch_llm.service.chunk_cutter import ChunkCutter
from airflow_batch_llm.service.estimating import ESTIMATE_FILE, Counted, Sample
from airflow_batch_llm.service.plan_stage import ROWS_FILE, PlanStage
from airflow_batch_llm.service.rendering import Renderer
from airflow_batch_llm.service.result_index import ResultIndex
from airflow_batch_llm.service.sources import LINE, JsonlSource, Source, SourceRows, open_source
from airflow_batch_llm.service.spec import CheckedDataset, check_columns
from airflow_batch_llm.service.staged_schema import STAGED_LINE, JsonSchemas
from airflow_batch_llm.service.targets import check_carries
from airflow_batch_llm.service.token_estimates import CHARACTERS_PER_TOKEN, TOKENS_PER_MESSAGE, answer_estimate
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.wire import DatasetSpec
from airflow_batch_llm.worker_wire import ResultLine

FILES_FILE: Final = "files.json"
SCHEMA_FILE: Final = "schema.arrow"
COPIES_FILE: Final = "copies.parquet"
KEYS_FILE: Final = "keys.parquet"
COPIES: Final = pa.schema([("row", pa.int64()), ("of", pa.int64())])
KEYS: Final = pa.schema([("row", pa.int64()), ("key", pa.binary())])


class StagedFile(msgspec.Struct):
    """A source file as it was staged below ``<plan>/files/<number>/``."""

    uri: str
    relative: str
    rows: int


def file_folder(number: int) -> str:
    """Where a staged file lies below its plan."""
    return f"files/{number:06d}"


@dataclass
class Planner:
    """Stages the plan of one table."""

    stage: PlanStage
    dataset: CheckedDataset
    spec: DatasetSpec
    endpoint: str
    keys: RowKeys | None
    """How rows get their keys; None where equal rows may get unequal answers, so that every one is asked."""
    index: ResultIndex | None = None
    """Where known answers are looked up; used only together with ``keys``."""
    dry: bool = False
    """Whether nothing but a sample is staged, for an estimate."""
    tokenizes: bool = False
    """Whether a worker is there that tokenizes it."""
    canary_rows: int | None = None
    """How many of the first rows are chunks of their own, which the others wait for."""
    done_before: Iterable[ResultLine] = ()
    """Results of the generation before this batch, which keeps those that are answers."""
    rows: int = 0
    files: list[StagedFile] = field(default_factory=list)
    _faulty: int = 0
    _reused: int = 0
    _copies: int = 0
    _quarantined: pa.Schema | None = None
    """The columns of the files so far, where there is a quarantine."""

    def plan(self, *, engine_identity: str | None) -> Plan:
        """Reads the source once and stages what the batch needs of it. The identity is what ``keys`` were made for.

        Raises :class:`InvalidRequestError` where the source cannot be planned at all.
        """
        self.stage.keep_answers(self.done_before)
        roles = None if self.endpoint == EMBEDDINGS else [message.role for message in self.spec.messages]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with closing(AskedRows(folder, body_shape(roles), self.keys)) as asked:
                self._stage_files(folder, asked)
                self._take_known(folder, asked)
                if self.dry:
                    return self._sampled(asked)
                self._cut(folder, asked)
        self.stage.finish()
        return Plan(
            storage_key=self.stage.prefix,
            rows_total=self.rows,
            rows_done=self.stage.results_stored,
            rows_failed=self._faulty,
            rows_reused=self._reused,
            rows_duplicate=self._copies,
            engine_identity=engine_identity if self.keys else None,
            chunks=self.stage.chunks_longest_first(),
        )

    def _stage_files(self, folder: Path, asked: AskedRows) -> None:
        renderer_of = self.dataset.renderer
        schemas = None
        for number, file in enumerate(self.dataset.files):
            source = self.dataset.first if number == 0 else open_source(file)
            kept = check_columns(self.spec, source, file)
            if schemas is None or self.dataset.target.folder:
                schemas = self._schemas(source)
            path = folder / ROWS_FILE
            before = self.rows
            with closing(_Staging(None if self.dry else path)) as staging:
                for rows in source.batches(
                    used=self.dataset.used, kept=kept, reserved=self.dataset.output.schema.names
                ):
                    schemas.saw(rows, self.rows)
                    staging.write(rows, self.rows)
                    self._ask(rows, renderer_of(file), asked)
            count = self.rows - before
            if count and self.dry:
                self.files.append(StagedFile(file.uri, file.relative, count))
            elif count:
                self.stage.storage.put_file(self._at(len(self.files), ROWS_FILE), path)
                self.files.append(StagedFile(file.uri, file.relative, count))
                if self.dataset.target.folder:
                    self._finish_schema(schemas, [len(self.files) - 1])
        if not self.files:
            raise InvalidRequestError(f"Source {self.dataset.shown_source} has no rows.", code="empty_source")
        if self.dry:
            return
        if schemas is not None and not self.dataset.target.folder:
            self._finish_schema(schemas, range(len(self.files)))
        self._put(FILES_FILE, msgspec.json.encode(self.files))

    def _finish_schema(self, schemas: _Schemas, files: Iterable[int]) -> None:
        """Notes the types of the columns that these files' rows have in the target, once those are known."""
        if not isinstance(schemas, _Lines):
            check_carries(self.dataset.target, schemas.schema)
        self._check_quarantine_takes(schemas.schema)
        for number in files:
            if isinstance(schemas, JsonSchemas):
                with self.stage.storage.open(self._at(number, ROWS_FILE)) as stream:
                    schemas.check(stream)
            self.stage.storage.put(self._at(number, SCHEMA_FILE), schemas.schema.serialize().to_pybytes())

    def _check_quarantine_takes(self, schema: pa.Schema) -> None:
        """The failed rows of all files go into one, also where the target is a folder."""
        if self.dataset.quarantine is None:
            return
        if self._quarantined is None:
            self._quarantined = schema
        first = self._quarantined
        if not schema.equals(first):
            raise InvalidRequestError(
                f"One file of the source has the columns {_named(schema)}, one before it {_named(first)}: their failed "
                "rows do not fit into one quarantine. List the columns to keep in passthrough, or leave out the "
                "quarantine.",
                code="schemas_differ",
                param="dataset.quarantine",
            )

    def _at(self, number: int, name: str) -> str:
        return f"{self.stage.prefix}/{file_folder(number)}/{name}"

    def _schemas(self, source: Source) -> _Schemas:
        if not isinstance(source, JsonlSource):
            kind = self.dataset.target.format.kind
            return _Typed(several=len(self.dataset.files) > 1 and not self.dataset.target.folder, kind=kind)
        if self.dataset.target.format.kind == "jsonl":
            return _Lines()
        return JsonSchemas(self.spec.passthrough)

    def _ask(self, rows: SourceRows, renderer: Renderer, asked: AskedRows) -> None:
        """Notes the rows that can be asked, and the faults of those that cannot."""
        for some, texts in renderer.render(rows):
            self._ask_some(rows, some, texts, asked)
        self._faulty += len(rows.faults)
        for position, fault in () if self.dry else rows.faults.items():
            self.stage.add_result(ResultLine(self.rows + position, "error", code=fault.code, error=fault.message))
        self.rows += len(rows)

    def _ask_some(self, rows: SourceRows, some: slice, texts: Sequence[pa.Array], asked: AskedRows) -> None:
        first, count = self.rows + some.start, some.stop - some.start
        wanted = np.ones(count, dtype=bool)
        kept = self.stage.kept_among(first, count)
        if self.keys is None:
            wanted &= ~kept  # nothing follows from their answers
        wanted[[position - some.start for position in rows.faults if some.start <= position < some.stop]] = False
        numbers = pa.array(np.arange(first, first + count))
        characters = sum((pc.utf8_length(text).to_numpy() for text in texts), start=np.zeros(count, np.int64))
        tokens = pa.array(characters // CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(texts) + self._answer_tokens)
        chosen = [numbers, tokens, pa.array(kept), *texts]
        if not wanted.all():
            mask = pa.array(wanted)
            chosen = [column.filter(mask) for column in chosen]
        asked.add(chosen[0], chosen[3:], tokens=chosen[1], done=chosen[2])

    @property
    def _answer_tokens(self) -> int:
        return 0 if self.endpoint == EMBEDDINGS else answer_tokens(self.spec)

    def _take_known(self, folder: Path, asked: AskedRows) -> None:
        if self.index is None or self.keys is None:
            return
        with self.index.fetched(folder / "index") as found:
            for row, known in asked.known(found.files, found.living):
                self._reused += 1
                if not self.dry:
                    self.stage.add_result(ResultLine(row, "success", **_given(known)))

    def _cut(self, folder: Path, asked: AskedRows) -> None:
        canary, rest = ChunkCutter(self.stage), ChunkCutter(self.stage, later=self.canary_rows is not None)
        copies, keys = _Column(folder / COPIES_FILE, COPIES), _Column(folder / KEYS_FILE, KEYS)
        for some in asked.ordered():
            # Of equal rows the first is asked, so that the answer of a canary's row is always found in the canary.
            first = some.rows < (self.canary_rows or 0)
            if not first.any():
                rest.add(some.rows, some.bodies, some.tokens)
            else:
                for cutter, chosen in ((canary, first), (rest, ~first)):
                    cutter.add(some.rows[chosen], some.bodies.filter(pa.array(chosen)), some.tokens[chosen])
            copies.write(some.copies)
            self._copies += some.copies.num_rows
            if some.keys is not None:
                keys.write(pa.record_batch([pa.array(some.rows), some.keys.cast(pa.binary())], schema=KEYS))
        canary.finish()
        rest.finish()
        for column, name in ((copies, COPIES_FILE), (keys, KEYS_FILE)):
            if column.close():
                self.stage.storage.put_file(f"{self.stage.prefix}/{name}", column.path)

    def _sampled(self, asked: AskedRows) -> Plan:
        """The plan of a dry run: its one chunk, if any, is a sample to be tokenized."""
        sample = Sample(self._answer_tokens)
        for some in asked.ordered():
            sample.add(some)
            self._copies += some.copies.num_rows
        counted = Counted(
            rows=self.rows,
            rows_faulty=self._faulty,
            rows_duplicate=self._copies,
            rows_reused=self._reused,
            rows_asked=sample.rows,
            prompt_tokens=sample.prompt_tokens,
            sampled={row: tokens for row, _, tokens in sample.kept},
            answer_tokens=self._answer_tokens,
        )
        self._put(ESTIMATE_FILE, msgspec.json.encode(counted))
        if self.tokenizes and sample.kept:
            lines = b"".join(msgspec.json.encode(line) + b"\n" for line in sample.lines(self.endpoint))
            self.stage.add_packed(lines, len(sample.kept), sum(tokens for _, _, tokens in sample.kept))
        return Plan(
            storage_key=self.stage.prefix,
            rows_total=self.rows,
            rows_done=0,
            rows_failed=0,
            rows_reused=self._reused,
            rows_duplicate=self._copies,
            chunks=self.stage.chunks,
            endpoint=TOKENIZE,
        )

    def _put(self, name: str, content: bytes) -> None:
        self.stage.storage.put(f"{self.stage.prefix}/{name}", content)


class _Staging:
    """Writes the columns that the target repeats under names of our own, so that none can clash; to nowhere, if so."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: SourceRows, start: int) -> None:
        if self._path is None:
            return
        staged = rows.staged
        numbers = pa.array(np.arange(start, start + len(rows)))
        names = ["row", *(STAGED_LINE if name == LINE else f"column_{i}" for i, name in enumerate(staged.schema.names))]
        fields = [column.with_name(name) for name, column in zip(names[1:], staged.schema, strict=True)]
        batch = pa.record_batch([numbers, *staged.columns], schema=pa.schema([pa.field("row", pa.int64()), *fields]))
        self._writer = self._writer or pq.ParquetWriter(self._path, batch.schema, compression="zstd")
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class _Lines:
    """JSON lines that the target repeats to the letter: they need no types."""

    schema = pa.schema([(LINE, pa.large_binary())])

    def saw(self, rows: SourceRows, start: int) -> None:
        pass


class _Typed:
    """Columns that have types of their own. Where several files go into one, theirs must be the same."""

    def __init__(self, *, several: bool, kind: str) -> None:
        self._several = several
        self._kind = kind
        self.schema: pa.Schema = pa.schema([])

    def saw(self, rows: SourceRows, start: int) -> None:
        seen = rows.staged.schema
        if start and self._several and not seen.equals(self.schema):
            raise InvalidRequestError(
                f"The file that begins at row {start} has the columns {_named(seen)}, the ones before it "
                f"{_named(self.schema)}: they do not fit into one target. Use a folder as target (ending with /), "
                "or list the columns to keep in passthrough.",
                code="schemas_differ",
                param="dataset.source",
            )
        if self._kind != "parquet":
            _check_texts(rows.staged, start, self._kind)
        self.schema = seen


def _check_texts(staged: pa.RecordBatch, start: int, kind: str) -> None:
    """A Parquet file can call bytes text that are none. Another Parquet file repeats them, other formats cannot."""
    for name, column in zip(staged.schema.names, staged.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidRequestError(
                f"Column {name!r} has text that is not UTF-8 among the rows from {start} to {start + len(column) - 1}, "
                f"which a .{kind} target cannot hold. Use a .parquet target, or leave the column out of passthrough.",
                code="invalid_utf8",
                param="dataset.source",
            ) from error


_Schemas = _Lines | _Typed | JsonSchemas


class _Column:
    """A Parquet file that is made once there is something to write."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._writer = self._writer or pq.ParquetWriter(self.path, self._schema, compression="zstd")
            self._writer.write_batch(batch.cast(self._schema))

    def close(self) -> bool:
        """Whether there is a file."""
        if self._writer:
            self._writer.close()
        return self._writer is not None


def answer_tokens(spec: DatasetSpec) -> int:
    """What all answers to a row are taken to need."""
    if spec.choices:
        return max(len(choice) for choice in spec.choices) // CHARACTERS_PER_TOKEN + 1
    limit = spec.parameters.get("max_completion_tokens", spec.parameters.get("max_tokens"))
    samples = spec.parameters.get("n") or 1
    return answer_estimate(limit) * samples


def _given(known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if value is not None}


def _named(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {column.type}" for column in schema) or "none"
