"""Which answers a team's batches have found already: append-only Parquet files, sorted by key.

The store has a line per file and one per batch in it, not per row. A result belongs to the batch that computed it: it
is used while that batch's line lives, and leaves the files when they are next merged.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.service.work_database import open_database, quoted
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


def _merge_into(path: Path, files: list[Path], living: list[str], folder: Path) -> int:
    """Writes the newest answer to each key into one file, and gives how many there are."""
    rows = 0
    with closing(open_database(folder)) as database, pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
        database.execute("CREATE TEMP TABLE living AS SELECT unnest(?) AS batch", [living])
        if not files:
            return 0
        listed = ", ".join(quoted(file) for file in files)
        merged = database.sql(
            f"SELECT i.* FROM read_parquet([{listed}]) i SEMI JOIN living USING (batch) "  # noqa: S608 (our own paths)
            'QUALIFY row_number() OVER (PARTITION BY "key" ORDER BY "at" DESC) = 1 ORDER BY "key"'
        )
        for batch in merged.to_arrow_reader(GROUP_ROWS):
            if batch.num_rows:
                writer.write_batch(batch.cast(INDEX))
                rows += batch.num_rows
    return rows
