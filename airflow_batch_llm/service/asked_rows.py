"""The rows of a table that an engine could be asked: equal ones found, known answers left out, brought into order.

Works in a DuckDB file in a folder of its own, with bounded memory; it spills to that folder. Long bodies are beside it:
of these it knows how they begin, and hashes of longer and longer beginnings, which bring those alike together.
"""

from __future__ import annotations

import hashlib
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
_BEGINNINGS: Final = tuple(round(LONG * 1.25**step) for step in range(1, 29))
"""Of a long body, the lengths in characters of the beginnings whose hashes it is sorted by, up to half a million. So
bodies with a beginning in common stand together for four fifths of it or more."""
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
        self._folder = folder
        self._shape = shape
        self._keys = keys
        self._database = open_database(folder)
        self._spool = Spool(folder / "long_bodies")
        self._database.execute(
            'CREATE TEMP TABLE asked ("row" BIGINT, start VARCHAR, beginnings UBIGINT[], place VARCHAR, tokens BIGINT, '
            'done BOOLEAN, "key" BLOB)'
        )
        self._known = False

    def close(self) -> None:
        self._database.close()
        self._spool.close()

    def add(self, rows: pa.Array, texts: Sequence[pa.Array], tokens: pa.Array, done: pa.Array) -> None:
        """Rows by number, with the texts of their templates, an estimate of their tokens, and whether they have their
        answer already, which then counts for their equals too."""
        names = ["row", "tokens", "done", *(f"text_{i}" for i in range(len(texts)))]
        self._database.register("added", pa.table([rows, tokens, done, *texts], names=names))
        key = self._keys.sql("body") if self._keys else "NULL"
        hashes = ", ".join(f"hash(body[:{length}])" for length in _BEGINNINGS)
        found = self._database.sql(
            f'SELECT "row", body[:{LONG}] AS start, '  # noqa: S608 (made of our own expressions)
            f"CASE WHEN strlen(body) > {LONG} THEN [{hashes}] END AS beginnings, "
            f'CASE WHEN strlen(body) > {LONG} THEN body END AS place, tokens, done, {key} AS "key" '
            f'FROM (SELECT "row", tokens, done, {self._shape} AS body FROM added)'
        ).to_arrow_table()
        self._database.unregister("added")
        at = found.schema.get_field_index("place")
        places = [self._spool.shortened(chunk) for chunk in found.column(at).chunks]
        found = found.set_column(at, "place", pa.chunked_array(places, pa.string()))
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
            f'SELECT "row", coalesce(place, start) AS body, tokens, "key", done FROM asked {left} '  # noqa: S608
            'ORDER BY start, beginnings, "key", done DESC, "row"'
        )
        last = _Last()
        for batch in self._database.sql(query).to_arrow_reader(READ_ROWS):
            for some in cut(self._spool.sizes(batch.column("body"))):
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
            self._spool.restored(batch.column("body").filter(pa.array(asked))),
            batch.column("tokens").to_numpy()[asked],
            batch.column("key").filter(pa.array(asked)) if self._keys else None,
            copies,
        )


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
