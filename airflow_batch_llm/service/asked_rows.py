"""The rows of a table that an engine could be asked: equal ones found, known answers left out, brought into order.

Works in a DuckDB file in a folder of its own, with bounded memory; it spills to that folder. Long bodies are beside it:
of these it knows how they begin, and checksums of longer and longer beginnings, which bring those alike together.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.service.blocks import cut
from airflow_batch_llm.service.result_index import answers_at
from airflow_batch_llm.service.spool import LONG, Spool
from airflow_batch_llm.service.work_database import open_database

READ_ROWS: Final = 16_384
_BEGINNINGS: Final = (*range(LONG, 16 * LONG, 256), *(round(16 * LONG * 1.25**step) for step in range(17)))
"""Of a long body, the lengths in bytes of the beginnings whose checksums it is sorted by, up to half a million."""
_BLOCK: Final = 64
"""The block size of SHA-256, which HMAC pads its key to."""


@dataclass(frozen=True)
class RowKeys:
    """Makes the key of a row's content: an HMAC-SHA256 under the team's secret, over what decides the answer."""

    secret: bytes
    context: bytes
    """All that decides it beside the row's own part of the request: engine, endpoint, parameters, schema."""

    def sql(self, body: str) -> str:
        """The key of a body, in SQL: the nested hashes that HMAC (RFC 2104) is defined as."""
        key = self.secret.ljust(_BLOCK, b"\0")
        inner = bytes(byte ^ 0x36 for byte in key) + hashlib.sha256(self.context).digest()
        outer = bytes(byte ^ 0x5C for byte in key)
        return f"unhex(sha256({_blob(outer)} || unhex(sha256({_blob(inner)} || encode({body})))))"


@dataclass(frozen=True)
class Ordered:
    """Consecutive rows to ask, each prompt once, those alike side by side; and the rows that equal an earlier one."""

    rows: np.ndarray[Any, Any]
    bodies: pa.Array
    tokens: np.ndarray[Any, Any]
    keys: pa.Array | None
    copies: pa.RecordBatch
    """Columns ``row`` and ``of``."""


class AskedRows:
    """Rows with the JSON bodies that they are asked with.

    :param shape: SQL that makes the body from the columns ``text_0``, ``text_1`` …
    :param keys: how rows get a key, or None where equal rows may get unequal answers.
    """

    def __init__(self, folder: Path, shape: str, keys: RowKeys | None) -> None:
        self._keys = keys
        self._database = open_database(folder)
        self._spool = Spool(folder / "long_bodies")
        self._database.execute(
            'CREATE TEMP TABLE asked ("row" BIGINT, body VARCHAR, beginnings UINTEGER[], place VARCHAR, tokens BIGINT, '
            'done BOOLEAN, "key" BLOB)'
        )
        key = keys.sql("body") if keys else "NULL"
        self._bodies = (
            f'SELECT "row", body, NULL AS beginnings, NULL AS place, tokens, done, {key} AS "key" '  # noqa: S608
            f'FROM (SELECT "row", tokens, done, {shape} AS body FROM added)'
        )
        self._known = False

    def close(self) -> None:
        self._database.close()
        self._spool.close()

    def add(self, rows: pa.Array, texts: Sequence[pa.Array], tokens: pa.Array, done: pa.Array) -> None:
        """Rows by number, with the texts of their templates, an estimate of their tokens, and whether they have their
        answer already, which then counts for their equals too."""
        sizes = sum((pc.binary_length(text).to_numpy() for text in texts), start=np.zeros(len(rows), np.int64))
        names = ["row", "tokens", "done", *(f"text_{i}" for i in range(len(texts)))]
        added = pa.table([rows, tokens, done, *texts], names=names)
        self._add_short(added.filter(pa.array(sizes <= LONG)))
        self._add_long(added.filter(pa.array(sizes > LONG)))

    def _add_short(self, added: pa.Table) -> None:
        if added.num_rows:
            self._database.register("added", added)
            self._database.execute(f"INSERT INTO asked {self._bodies}")
            self._database.unregister("added")

    def _add_long(self, added: pa.Table) -> None:
        if not added.num_rows:
            return
        self._database.register("added", added)
        found = self._database.sql(self._bodies).to_arrow_table().combine_chunks()
        self._database.unregister("added")
        bodies = found.column("body").chunk(0)
        columns = {
            "body": pc.utf8_slice_codeunits(bodies, 0, LONG),
            "beginnings": pa.array(map(_checksums, bodies.cast(pa.large_binary()).to_pylist()), pa.list_(pa.uint32())),
            "place": self._spool.shortened(bodies),
        }
        for name, column in columns.items():
            found = found.set_column(found.schema.get_field_index(name), name, column)
        self._database.from_arrow(found).insert_into("asked")

    def known(self, index: Sequence[Path], living: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows whose answer an index knows, with it; they are not asked. Of several answers the newest counts.

        :param index: index files (see :mod:`airflow_batch_llm.service.result_index`), below this object's folder.
        :param living: the batches whose results may still be used.
        """
        if not index or not living or self._keys is None:
            return
        self._known = True
        self._database.execute(
            'CREATE TEMP TABLE known AS SELECT a."row", i.filename, i.file_row_number AS position FROM asked a '
            'JOIN read_parquet(?, filename=true, file_row_number=true) i ON a."key" = i."key" '
            "WHERE i.batch IN (SELECT unnest(?)) AND NOT a.done "
            'QUALIFY row_number() OVER (PARTITION BY a."row" ORDER BY i.at DESC) = 1',
            [[str(path) for path in index], list(living)],
        )
        for path in index:
            query = 'SELECT position, "row" FROM known WHERE filename = ? ORDER BY ALL'
            yield from answers_at(path, self._database.sql(query, params=[str(path)]).to_arrow_reader(READ_ROWS))

    def ordered(self) -> Iterator[Ordered]:
        """The rows that are left, so that those with a common beginning follow one another."""
        left = 'ANTI JOIN known USING ("row")' if self._known else ""
        query = (
            f'SELECT "row", coalesce(place, body) AS text, tokens, "key", done FROM asked {left} '  # noqa: S608
            'ORDER BY body, beginnings, "key", done DESC, "row"'
        )
        last = _Last()
        for batch in self._database.sql(query).to_arrow_reader(READ_ROWS):
            for some in cut(self._spool.sizes(batch.column("text"))):
                yield self._ordered(batch.slice(some.start, some.stop - some.start), last)

    def _ordered(self, batch: pa.RecordBatch, last: _Last) -> Ordered:
        rows = batch.column("row").to_numpy()
        same = np.zeros(len(rows), dtype=bool)
        of = rows
        if self._keys is not None:
            keys = batch.column("key")
            same[1:] = pc.equal(keys.slice(1), keys.slice(0, len(rows) - 1)).to_numpy(zero_copy_only=False)
            same[0] = keys[0].as_py() == last.key
            firsts = np.maximum.accumulate(np.where(same, -1, np.arange(len(rows))))
            of = np.where(firsts < 0, last.row, rows[np.maximum(firsts, 0)])
            last.row, last.key = int(of[-1]), keys[-1].as_py()
        done = batch.column("done").to_numpy(zero_copy_only=False)
        asked, copied = ~same & ~done, same & ~done
        copies = pa.record_batch([pa.array(rows[copied]), pa.array(of[copied])], names=["row", "of"])
        return Ordered(
            rows[asked],
            self._spool.restored(batch.column("text").filter(pa.array(asked))),
            batch.column("tokens").to_numpy()[asked],
            batch.column("key").filter(pa.array(asked)) if self._keys else None,
            copies,
        )


def _checksums(body: bytes) -> list[int]:
    """Of longer and longer beginnings."""
    found, checksum, at = [], 0, 0
    for end in itertools.takewhile(lambda end: end < len(body), _BEGINNINGS):
        checksum = zlib.crc32(memoryview(body)[at:end], checksum)
        found.append(checksum)
        at = end
    return found


@dataclass
class _Last:
    """The last row of the batch before, which the first ones of the next may equal."""

    row: int = -1
    key: bytes | None = None


def body_shape(roles: Sequence[str] | None) -> str:
    """SQL for a request's body over ``text_0`` …: a conversation with these roles, or (None) a text to embed."""
    if roles is None:
        return """'{"input":' || to_json(text_0)::VARCHAR || '}'"""
    messages = " || ',' || ".join(
        f"""'{{"role":"{role}","content":' || to_json(text_{i})::VARCHAR || '}}'""" for i, role in enumerate(roles)
    )
    return f"""'{{"messages":[' || {messages} || ']}}'"""


def determined(endpoint: str, parameters: Mapping[str, Any]) -> bool:
    """Whether equal requests get equal answers: a vector is computed, and sampling is greedy or seeded."""
    return endpoint == EMBEDDINGS or parameters.get("temperature") == 0 or parameters.get("seed") is not None


def _blob(content: bytes) -> str:
    return "'" + "".join(f"\\x{byte:02X}" for byte in content) + "'::BLOB"
