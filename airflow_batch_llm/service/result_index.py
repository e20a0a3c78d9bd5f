"""Which answers a team's batches have found already: append-only Parquet files, sorted by key.

The store has a line per file and one per batch in it, not per row. A result belongs to the batch that computed it: it
is used while that batch's line lives, and leaves the files when they are next merged.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.service.blocks import BLOCK_BYTES
from airflow_batch_llm.service.long_answers import restored, shortened, sorted_schema
from airflow_batch_llm.service.spool import Spool
from airflow_batch_llm.service.work_database import open_database
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.index_files import IndexFile, IndexFiles

KNOWN: Final = pa.schema(
    [
        ("output", pa.string()),
        ("outputs", pa.list_(pa.string())),
        ("confidence", pa.float64()),
        ("embedding", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
"""What an index file has of an answer."""
KNOWN_COLUMNS: Final = tuple(KNOWN.names)
INDEX: Final = pa.schema([("key", pa.binary()), ("batch", pa.string()), ("at", pa.float64()), *KNOWN])

MERGED_AT: Final = 8
"""How many files of one level are merged into one of the next: a key is written log8(batches) times over."""
GROUP_ROWS: Final = 65_536
READ_ROWS: Final = 16_384


@dataclass(frozen=True)
class Fetched:
    """The index as local files, and the batches whose results in them may be used."""

    files: list[Path]
    living: list[str]


@dataclass(frozen=True)
class ResultIndex:
    """The index of one team."""

    storage: Storage
    index_files: IndexFiles
    team: str

    @contextmanager
    def fetched(self, folder: Path) -> Iterator[Fetched]:
        """Brings the index files into ``folder``, where they stay for the length of the block."""
        files, living = self.index_files.living(self.team)
        folder.mkdir(exist_ok=True)
        try:
            yield Fetched([path for path in (self._fetch(file, folder) for file in files) if path], living)
        finally:
            shutil.rmtree(folder)

    def add(self, batch_id: str, content: Path, *, rows: int, seconds: float) -> None:
        """Takes in a file of :data:`INDEX`, sorted by key, with one batch's results. They live ``seconds`` long."""
        key = f"index/{hashlib.sha256(self.team.encode()).hexdigest()[:16]}/{uuid.uuid4().hex}.parquet"
        size = content.stat().st_size
        self.storage.put_file(key, content)
        self.index_files.add(self.team, key, batch_id=batch_id, rows=rows, size=size, seconds=seconds)

    def tidy(self) -> None:
        """Merges files where there are many, and drops those whose batches are all gone."""
        for key in self.index_files.drop_empty(self.team):
            self.storage.delete(key)
        while files := self.index_files.to_merge(self.team, MERGED_AT):
            self._merge(files)

    def _merge(self, files: list[IndexFile]) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = [path for path in (self._fetch(file, folder) for file in files) if path]
            living = self.index_files.batches_in([file.id for file in files])
            merged = folder / "merged.parquet"
            rows = _merge_into(merged, paths, living, folder)
            key = f"{files[0].storage_key.rpartition('/')[0]}/{uuid.uuid4().hex}.parquet"
            size = merged.stat().st_size
            self.storage.put_file(key, merged)
        if not self.index_files.replace(files, key, rows=rows, size=size):
            self.storage.delete(key)  # another process has merged them
            return
        for file in files:
            self.storage.delete(file.storage_key)

    def _fetch(self, file: IndexFile, folder: Path) -> Path | None:
        path = folder / f"{file.id}.parquet"
        try:
            with self.storage.open(file.storage_key) as stream, path.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        except FileNotFoundError:
            path.unlink(missing_ok=True)  # merged or dropped since it was listed: it only knows less
            return None
        return path


def answers_at(path: Path, places: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their answers of :data:`KNOWN`.

    :param places: columns ``position`` (of the answer in the file; ascending) and ``row``.
    """
    with pq.ParquetFile(path) as file:
        groups = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
        at, answers = -1, pa.table([])
        for batch in places:
            positions, rows = batch.column("position").to_numpy(), batch.column("row").to_numpy()
            found = np.searchsorted(groups, positions, side="right") - 1
            for group in np.unique(found).tolist():
                if group != at:
                    at, answers = group, file.read_row_group(group, columns=list(KNOWN_COLUMNS))
                chosen = found == group
                each, of = np.unique(positions[chosen] - groups[group], return_inverse=True)
                taken = answers.take(pa.array(each)).to_pylist()
                yield from ((row, taken[place]) for row, place in zip(rows[chosen].tolist(), of.tolist(), strict=True))


def write_index(path: Path, pieces: Iterable[pa.RecordBatch]) -> int:
    """Writes blocks of :data:`INDEX` into one file, and gives how many rows there are."""
    rows = 0
    with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
        for group in _groups(pieces):
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
    return rows


def _groups(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """What goes into one row group: read as a whole, so it must not be large."""
    waiting: list[pa.RecordBatch] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(some.num_rows for some in waiting) >= GROUP_ROWS or sum(some.nbytes for some in waiting) >= BLOCK_BYTES:
            yield pa.Table.from_batches(waiting, schema=INDEX)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, schema=INDEX)


def _merge_into(path: Path, files: list[Path], living: list[str], folder: Path) -> int:
    """Writes the newest answer to each key into one file, and gives how many there are."""
    with closing(open_database(folder)) as database, Spool(folder / "long_texts") as spool:
        database.execute("CREATE TEMP TABLE living AS SELECT unnest(?) AS batch", [living])
        database.from_arrow(sorted_schema(INDEX).empty_table()).create("answers")
        for file in files:
            for batch in _read(file):
                database.from_arrow(shortened(batch, spool)).insert_into("answers")
        merged = database.sql(
            "SELECT a.* FROM answers a SEMI JOIN living USING (batch) "
            'QUALIFY row_number() OVER (PARTITION BY "key" ORDER BY "at" DESC) = 1 ORDER BY "key"'
        )
        batches = merged.to_arrow_reader(READ_ROWS)
        return write_index(path, (piece for batch in batches for piece in restored(batch, spool, INDEX)))


def _read(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).combine_chunks().to_batches()
