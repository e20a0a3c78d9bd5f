"""The source's columns of some rows of a table, from wherever they can be had without reading through it.

They are in the row groups that the plan has staged, until some time after the batch's end; in the target, as far as
that repeats them; and in the source itself, if it is still what the plan has read. Rows are told by their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from airflow_batch_llm.errors import RefusedError
from airflow_batch_llm.service.formats import FileFormat
from airflow_batch_llm.service.numbered_rows import Allowance, Values, counted_rows, parquet_rows, text_rows
from airflow_batch_llm.service.plan_stage import ROWS_FILE
from airflow_batch_llm.service.source_files import SourceFile, partitions_of
from airflow_batch_llm.service.sources import LINE
from airflow_batch_llm.service.spec import content_sha256
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.table_planner import FILES_FILE, SCHEMA_FILE, StagedFile, file_folder
from airflow_batch_llm.service.target_results import opened_target
from airflow_batch_llm.wire import DatasetSpec, Manifest

MOST_FILES: Final = 50
"""Files whose rows are counted to find out which one a row is in."""


class RowInput(NamedTuple):
    """A row's columns, none of them cut."""

    row: int
    values: Values
    partitions: Mapping[str, str | None]
    """What the folders of its file say, where it is known which file that is."""
    whole: bool
    """Whether these are all columns that the source has."""


class _Piece(NamedTuple):
    """The rows that are wanted of one file, which begins with row ``start`` of the table."""

    number: int
    start: int
    places: list[int]
    """By their number in it."""


@dataclass
class RowInputs:
    """Looks for the inputs of one batch's rows. What it read counts against one allowance."""

    state: ServiceState
    record: Mapping[str, Any]
    spec: DatasetSpec
    used: Collection[str]
    """The columns that the prompt needs."""
    added: Collection[str]
    """The names of the columns that the target adds."""
    allowance: Allowance = field(default_factory=Allowance)
    missing: str = "The row's columns cannot be had quickly."
    """Why what is still not found is not to be had."""

    def found(self, rows: Sequence[int]) -> Iterator[RowInput]:
        """The inputs of rows, of one row perhaps several: the last is the best."""
        left = set(rows)
        for place in (self._staged, self._of_target, self._of_source):
            for found in place(sorted(left)) if left else ():
                if found.whole:
                    left.discard(found.row)
                yield found

    @property
    def is_exact(self) -> bool:
        """Whether the target has the source's values as they were: CSV has nothing but texts."""
        target = (self.record["manifest"] or {}).get("format")
        return target != "csv" or all(
            (form := FileFormat.of_name(place)) is not None and form.kind == "csv" for place in self._places
        )

    @property
    def _places(self) -> list[str]:
        return [self.spec.source] if isinstance(self.spec.source, str) else list(self.spec.source)

    def of_target_row(self, row: int, columns: Mapping[str, Any]) -> RowInput:
        """What a row of the target, which was read already, says of its input."""
        found = self._input(row, {name: value for name, value in columns.items() if name not in self.added}, {})
        return found if self.is_exact else found._replace(whole=False)

    def _input(self, row: int, values: Values, partitions: Mapping[str, str | None]) -> RowInput:
        """``values`` are what the target repeats."""
        renders = set(self.used) <= {*values, *partitions}
        return RowInput(row, values, partitions, self.spec.passthrough is None and renders)

    def _staged(self, rows: Sequence[int]) -> Iterator[RowInput]:
        if self.record["staged_dropped_at"] is not None or self.record["dry_run"]:
            return
        try:
            files = self._staged_files()
            for piece in _pieces(rows, [file.rows for file in files]):
                yield from self._staged_rows(piece, partitions_of(files[piece.number].uri))
        except FileNotFoundError:  # dropped just now
            return

    def _staged_files(self) -> list[StagedFile]:
        with self.state.storage.open(f"{self.record['plan_key']}/{FILES_FILE}") as stream:
            return msgspec.json.decode(stream.read(), type=list[StagedFile])

    def _staged_rows(self, piece: _Piece, partitions: Mapping[str, str | None]) -> Iterator[RowInput]:
        folder = f"{self.record['plan_key']}/{file_folder(piece.number)}"
        with self.state.storage.open(f"{folder}/{SCHEMA_FILE}") as stream:
            names = pa.ipc.read_schema(pa.py_buffer(stream.read())).names
        with self.state.storage.open(f"{folder}/{ROWS_FILE}") as stream:
            for place, values in parquet_rows(stream, piece.places, self.allowance, first=self.used, names=names):
                if LINE not in values:
                    yield self._input(piece.start + place, values, partitions)
                elif values[LINE] is not None:  # a whole line, whatever the target repeats of it
                    yield RowInput(piece.start + place, msgspec.json.decode(values[LINE]), partitions, True)

    def _of_target(self, rows: Sequence[int]) -> Iterator[RowInput]:
        """From a Parquet target, which has row groups; of others only the rows are known that were read already."""
        if self.record["manifest"] is None or self.record["manifest"]["format"] != "parquet":
            return
        manifest = Manifest.model_validate(self.record["manifest"])
        try:
            for piece in _pieces(rows, [file.rows for file in manifest.files]):
                file = manifest.files[piece.number]
                with opened_target(self.state.places.of(self.record["team"]), manifest, file) as stream:
                    for place, values in parquet_rows(stream, piece.places, self.allowance, first=self.used):
                        yield self.of_target_row(piece.start + place, values)
        except (RefusedError, OSError, pa.ArrowException):  # gone, another's or edited: then the source may have them
            return

    def _of_source(self, rows: Sequence[int]) -> Iterator[RowInput]:
        self.missing = (
            "The row is too far from the beginning of its file, or in too large a row group, to be read here."
        )
        try:
            files = self.state.finder(self.record["team"]).find(self.spec.source)
            if self._have_changed(files):
                self.missing = "The source has changed since the batch was submitted, so its columns are not shown."
                return
            yield from self._source_rows(files, rows)
        except (RefusedError, OSError, pa.ArrowException) as error:
            said = error.message.removesuffix(" Nothing was submitted.") if isinstance(error, RefusedError) else error
            self.missing = f"The source cannot be read any more: {said}"

    def _have_changed(self, files: Sequence[SourceFile]) -> bool:
        record = self.record
        found = content_sha256(self.spec, record["model"], record["endpoint"], files, dry_run=record["dry_run"])
        return bool(found != record["content_sha256"])

    def _source_rows(self, files: Sequence[SourceFile], rows: Sequence[int]) -> Iterator[RowInput]:
        start = 0
        for number, (file, known) in enumerate(zip(files, self._counts(files), strict=True)):
            count = known
            if count is None and (file.format.kind != "parquet" or number >= MOST_FILES):
                return
            if file.format.kind == "parquet" and (count is None or _has_any(rows, start, count)):
                with file.open() as stream:
                    count = counted_rows(stream)
                    stream.seek(0)
                    places = [row - start for row in rows if start <= row < start + count]
                    for place, values in parquet_rows(stream, places, self.allowance, first=self.used):
                        yield RowInput(start + place, values, file.partitions, True)
            elif count is not None and _has_any(rows, start, count):
                places = [row - start for row in rows if start <= row < start + count]
                for place, values in text_rows(file, places, self.allowance):
                    yield RowInput(start + place, values, file.partitions, True)
            start += count or 0
            if start > max(rows):
                return

    def _counts(self, files: Sequence[SourceFile]) -> list[int | None]:
        """How many rows each file has, where the plan or the target tells."""
        if len(files) == 1:
            return [self.record["rows_total"]]
        if self.record["staged_dropped_at"] is None and not self.record["dry_run"]:
            staged = {file.uri: file.rows for file in self._staged_files()}
            return [staged.get(file.uri, 0) for file in files]
        written = (self.record["manifest"] or {}).get("files", [])
        if self.record["manifest"] and self.record["manifest"]["folder"] and len(written) == len(files):
            return [file["rows"] for file in written]
        return [None] * len(files)


def _has_any(rows: Sequence[int], start: int, count: int) -> bool:
    return any(start <= row < start + count for row in rows)


def _pieces(rows: Sequence[int], counts: Sequence[int]) -> Iterator[_Piece]:
    """The files that have some of the rows, by how many rows each file has."""
    starts = [0, *accumulate(counts)]
    for number, (start, end) in enumerate(pairwise(starts)):
        places = [row - start for row in rows if start <= row < end]
        if places:
            yield _Piece(number, start, places)
