"""The columns that a batch adds to a table, by what was asked for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.output_schema import OutputField
from airflow_batch_llm.service.typed_columns import arrow_fields, typed_columns
from airflow_batch_llm.wire import DatasetSpec

RESULT: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("status", pa.string()),
        ("output", pa.string()),
        ("outputs", pa.list_(pa.string())),
        ("confidence", pa.float64()),
        ("embedding", pa.string()),
        ("code", pa.string()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)
"""What is kept of a :class:`airflow_batch_llm.worker_wire.ResultLine` for a table."""

_COMMON: Final = (
    ("llm_status", pa.string()),
    ("llm_error", pa.string()),
    ("llm_finish_reason", pa.string()),
    ("llm_prompt_tokens", pa.int64()),
    ("llm_completion_tokens", pa.int64()),
)


@dataclass(frozen=True)
class OutputColumns:
    """Makes the output columns from results. The fields of a schema stand first, under their own names."""

    schema: pa.Schema
    fields: Sequence[OutputField] = ()

    @classmethod
    def of(cls, spec: DatasetSpec, endpoint: str, fields: Sequence[OutputField]) -> OutputColumns:
        return cls(pa.schema([*arrow_fields(list(fields)), *_answer(spec, endpoint), *_COMMON]), fields)

    def made(self, results: pa.RecordBatch) -> pa.RecordBatch:
        """One row for each of ``results`` (of :data:`RESULT`)."""
        column = results.column
        own = {
            "llm_output": column("outputs" if self._has_samples else "output"),
            "llm_confidence": column("confidence"),
            "llm_embedding": _vectors(column("embedding")) if "llm_embedding" in self.schema.names else None,
            "llm_status": column("status"),
            "llm_error": pc.binary_join_element_wise(column("code"), column("error"), pa.scalar(": ")),
            **{f"llm_{name}": column(name) for name in ("finish_reason", "prompt_tokens", "completion_tokens")},
        }
        typed: list[Any] = []
        if self.fields:
            typed = typed_columns(column("output"), pc.equal(column("status"), "success"), list(self.fields))
        names = self.schema.names[len(typed) :]
        return pa.record_batch([*typed, *(own[name] for name in names)], schema=self.schema)

    @property
    def _has_samples(self) -> bool:
        return "llm_output" in self.schema.names and pa.types.is_list(self.schema.field("llm_output").type)


def _answer(spec: DatasetSpec, endpoint: str) -> list[tuple[str, pa.DataType]]:
    if endpoint == EMBEDDINGS:
        return [("llm_embedding", pa.list_(pa.float32()))]
    if (spec.parameters.get("n") or 1) > 1:
        return [("llm_output", pa.list_(pa.string()))]
    if spec.choices is not None:
        return [("llm_output", pa.string()), ("llm_confidence", pa.float64())]
    return [("llm_output", pa.string())]


def _vectors(texts: pa.Array) -> pa.Array:
    """Vectors from the base64 of their 32-bit floats."""
    contents = [None if text is None else base64.b64decode(text) for text in texts.to_pylist()]
    lengths = [0 if content is None else len(content) // 4 for content in contents]
    values = pa.array(np.frombuffer(b"".join(content or b"" for content in contents), "<f4"))
    edges = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    missing = pa.array([content is None for content in contents])
    return pa.ListArray.from_arrays(edges, values, mask=missing)
