"""What a table's file is by the ending of its name: its format, and how it is compressed."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, cast

import pyarrow as pa
import zstandard

from airflow_batch_llm.storage.base import ChangedError, StorageTroubleError

ENDINGS: Final = ".parquet, .jsonl, .jsonl.gz, .jsonl.zst, .csv, .csv.gz or .csv.zst"
_KINDS: Final = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}
_COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3


class DamagedError(Exception):
    """A compressed stream that breaks off or is none."""


@dataclass(frozen=True)
class FileFormat:
    """``kind`` is parquet, jsonl or csv; ``compression`` is none, gzip or zstd (of Parquet: inside of it)."""

    kind: str
    compression: str = "none"

    @classmethod
    def of_name(cls, name: str) -> FileFormat | None:
        """The format that a name says, or None where it says none that can be read."""
        path = PurePosixPath(name.lower())
        compression = _COMPRESSIONS.get(path.suffix)
        kind = _KINDS.get(PurePosixPath(path.stem).suffix if compression else path.suffix)
        if kind is None or (compression and kind == "parquet"):
            return None
        return cls(kind, compression or "none")

    @property
    def ending(self) -> str:
        """How a name of this format ends. Parquet does not say how it is compressed: it knows by itself."""
        outer = {"gzip": ".gz", "zstd": ".zst"}.get(self.compression, "") if self.kind != "parquet" else ""
        return f".{self.kind}{outer}"

    def stem(self, name: str) -> str:
        """The name without its ending."""
        return name[: -len(self.ending)]


@contextmanager
def decompressed(stream: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    """The bytes inside a compressed stream. Raises :class:`DamagedError` in the block where they cannot be read."""
    if compression == "none":
        yield stream
        return
    try:
        with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), compression) as inner:
            yield cast("BinaryIO", io.BufferedReader(inner))
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, (ChangedError, StorageTroubleError)) or getattr(error, "errno", None) is not None:
            raise  # what lies below the compression, not the compression itself
        raise DamagedError(str(error)) from error


@contextmanager
def compressed(stream: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    """A stream whose bytes arrive compressed in ``stream``. The same bytes give the same bytes at any time."""
    if compression == "gzip":
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as inner:
            yield cast("BinaryIO", inner)
    elif compression == "zstd":
        with zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(stream, closefd=False) as writer:
            yield cast("BinaryIO", writer)
    else:
        yield stream
