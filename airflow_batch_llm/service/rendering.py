"""Rendering templates for a block of rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.service.blocks import cut
from airflow_batch_llm.service.sources import Fault, SourceRows
from airflow_batch_llm.service.template import NotTextError, Template, as_text

TEXT: Final = pa.large_string()
MOST_BYTES: Final = 8 << 20
"""The longest prompt: two million tokens of English, and more than the models of 2026 take."""


@dataclass
class Renderer:
    """Renders the templates of one dataset over the rows of one file."""

    templates: Sequence[Template]
    constants: Mapping[str, Any]
    """What is the same in every row: the dataset's constants, and what the file's folders say."""

    def render(self, rows: SourceRows) -> Iterator[tuple[slice, list[pa.Array]]]:
        """Blocks of the rows, each with a text for every template and row.

        Rows that cannot be rendered, or whose prompt would be longer than any model takes, are noted among
        ``rows.faults`` and have some other text.
        """
        texts: dict[str, pa.Array | str] = {}
        for name in {name for template in self.templates for name in template.names}:
            if name in self.constants:
                texts[name] = as_text(name, self.constants[name])
            else:
                texts[name] = _texts(name, rows)
        sizes = self._sizes(texts, len(rows))
        too_long = sizes > MOST_BYTES
        if too_long.any():
            for position in np.flatnonzero(too_long).tolist():
                rows.faults.setdefault(position, _too_long(int(sizes[position])))
            texts = {name: _emptied(text, too_long) for name, text in texts.items()}
            sizes = self._sizes(texts, len(rows))
        for some in cut(sizes):
            taken = {
                name: text if isinstance(text, str) else text.slice(some.start, some.stop - some.start)
                for name, text in texts.items()
            }
            yield some, [_joined(template, taken, some.stop - some.start) for template in self.templates]

    def _sizes(self, texts: Mapping[str, pa.Array | str], rows: int) -> np.ndarray[Any, Any]:
        """The bytes of each row's prompt."""
        literal = sum(len(text.encode()) for template in self.templates for text in template.texts)
        sizes = np.full(rows, literal, np.int64)
        for name, times in Counter(name for template in self.templates for name in template.names).items():
            text = texts[name]
            length = len(text.encode()) if isinstance(text, str) else pc.fill_null(pc.binary_length(text), 0).to_numpy()
            sizes += length * times
        return sizes


def _too_long(size: int) -> Fault:
    return Fault(
        "context_length_exceeded",
        f"The prompt has {size:,} bytes, more than the {MOST_BYTES:,} that are sent to an engine.",
    )


def _emptied(text: pa.Array | str, which: np.ndarray[Any, Any]) -> pa.Array | str:
    if isinstance(text, str):
        return text
    return pc.if_else(pa.array(which), pa.scalar("", TEXT), text)


def _texts(name: str, rows: SourceRows) -> pa.Array:
    values = rows.values(name)
    if isinstance(values, pa.Array):
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.dictionary_decode(), kind.value_type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if pa.types.is_integer(kind) or (is_text and _is_valid(values)):
            return values.cast(TEXT)
        values = _python_values(name, values, rows)
    return pa.array([_text(name, value, position, rows) for position, value in enumerate(values)], TEXT)


def _is_valid(values: pa.Array) -> bool:
    """Whether all texts are UTF-8: a Parquet file can say so of bytes that are not."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _text(name: str, value: Any, position: int, rows: SourceRows) -> str:
    try:
        text = as_text(name, value)
        if not text.isascii():
            text.encode()
    except NotTextError as error:
        rows.faults.setdefault(position, Fault("not_text", str(error)))
    except UnicodeEncodeError:
        rows.faults.setdefault(position, Fault("not_text", f"Column {name!r} holds half of a surrogate pair."))
    else:
        return text
    return ""


def _python_values(name: str, values: pa.Array, rows: SourceRows) -> list[Any]:
    """The values as Python has them; one that it cannot hold (nanoseconds, the year 30000) is that row's fault."""
    try:
        return list(values.to_pylist())
    except (ValueError, OverflowError):
        found = []
        for position, value in enumerate(values):
            try:
                found.append(value.as_py())
            except (ValueError, OverflowError) as error:
                found.append(None)
                message = f"Column {name!r} has a value that cannot be written into a prompt: {error}."
                rows.faults.setdefault(position, Fault("not_text", message))
        return found


def _joined(template: Template, texts: Mapping[str, pa.Array | str], rows: int) -> pa.Array:
    pieces: list[pa.Array | str] = [template.texts[0]]
    for name, text in zip(template.names, template.texts[1:], strict=True):
        pieces += (texts[name], text)
    if not any(isinstance(piece, pa.Array) for piece in pieces):
        return pa.repeat(pa.scalar("".join(map(str, pieces)), TEXT), rows)
    columns = [piece if isinstance(piece, pa.Array) else pa.scalar(piece, TEXT) for piece in pieces]
    return pc.binary_join_element_wise(*columns, pa.scalar("", TEXT), null_handling="replace", null_replacement="")
