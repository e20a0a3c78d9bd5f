"""The cheap look at a dataset before it is stored: everything that can be said without reading the whole table."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import OUTPUT_COLUMNS
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.sources import ParquetSource, Source, open_source
from airflow_batch_llm.service.targets import check_carries, check_format, check_free
from airflow_batch_llm.service.template import Template
from airflow_batch_llm.wire import DatasetSpec


class SamplingParameters(BaseModel):
    """What may stand in ``parameters``: fields of vLLM's chat completions that shape one text answer.

    The engine ignores a field that it does not know, so a misspelt one is refused here.
    """

    model_config = ConfigDict(extra="forbid")

    bad_words: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    reasoning_effort: str | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    response_format: dict[str, Any] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: dict[str, Any] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset whose places, columns and first rows were looked at."""

    source_path: Path
    target_path: Path
    source: Source
    templates: Sequence[tuple[str, Template]]
    passthrough: list[str]

    @property
    def used(self) -> set[str]:
        return {name for _, template in self.templates for name in template.names}


def check_dataset(spec: DatasetSpec, places: Places, *, owners: set[str]) -> CheckedDataset:
    """Everything about ``spec`` that can be judged now. Raises :class:`InvalidRequestError` for what is wrong.

    A target that exists passes if ``overwrite`` is set, or if its manifest names one of ``owners``: the key or the
    series that the new batch is submitted under.
    """
    _check_parameters(spec)
    source_path = places.resolve(spec.source, param="dataset.source")
    target_path = places.resolve(spec.target, param="dataset.target")
    check_format(target_path)
    source = open_source(source_path)
    templates = [(message.role, Template.parse(message.content)) for message in spec.messages]
    passthrough = _passthrough(spec, source)
    checked = CheckedDataset(source_path, target_path, source, templates, passthrough)
    _check_first_rows(checked)
    _check_names(spec, checked)
    if isinstance(source, ParquetSource):
        check_carries(target_path, pa.schema([source.schema.field(name) for name in checked.passthrough]))
    if source_path == target_path:
        raise _refused("target_is_source", f"Target {target_path} is the source itself.", "target")
    check_free(target_path, overwrite=spec.overwrite, owners=owners)
    return checked


def request_parameters(spec: DatasetSpec) -> dict[str, Any]:
    """The fields that every request of the batch shares: greedy unless asked otherwise, held to the choices."""
    parameters = {"temperature": 0.0, **spec.parameters}
    if spec.choices is not None:
        parameters["structured_outputs"] = {"choice": spec.choices}
    return parameters


def content_sha256(spec: DatasetSpec, model: str, endpoint: str, source_path: Path) -> str:
    """A hash over all that decides a batch's results: the spec, and the source's place, size and time of change."""
    state = source_path.stat()
    content = {
        "spec": spec.model_dump(mode="json", exclude={"overwrite"}),
        "model": model,
        "endpoint": endpoint,
        "source": [str(source_path), state.st_size, state.st_mtime_ns],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_parameters(spec: DatasetSpec) -> None:
    try:
        SamplingParameters.model_validate(spec.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        if first["type"] == "extra_forbidden":
            raise _refused(
                "unknown_parameter",
                f"Parameter {name!r} is not one that a table batch can pass to the engine, which would ignore it "
                f"in silence. Known are: {', '.join(SamplingParameters.model_fields)}.",
                "parameters",
            ) from error
        raise _refused(
            "invalid_parameter", f"Parameter {name!r} is {first['input']!r}: {first['msg']}.", "parameters"
        ) from error
    if spec.choices is not None:
        if len(set(spec.choices)) < len(spec.choices):
            raise _refused("invalid_choices", "Two of the choices are the same.", "choices")
        held = {"structured_outputs", "response_format", "ignore_eos"} & set(spec.parameters)
        if held:
            raise _refused("invalid_choices", f"choices cannot go together with {sorted(held)[0]!r}.", "choices")


def _passthrough(spec: DatasetSpec, source: Source) -> list[str]:
    if spec.passthrough is None:
        return list(source.columns)
    missing = [name for name in spec.passthrough if name not in source.columns]
    if missing:
        raise _refused(
            "unknown_column",
            f"passthrough names {missing[0]!r}, but the source has the columns {_listed(source.columns)}.",
            "passthrough",
        )
    return [name for name in source.columns if name in spec.passthrough]


def _check_names(spec: DatasetSpec, checked: CheckedDataset) -> None:
    known = {*checked.source.columns, *spec.constants}
    unknown = sorted(checked.used - known)
    if unknown:
        raise _refused(
            "unknown_column",
            f"The template names {{{unknown[0]}}}, which is neither a column of the source "
            f"({_listed(checked.source.columns)}) nor a constant. Write {{{{{unknown[0]}}}}} for the text "
            f"{{{unknown[0]}}} itself.",
            "messages",
        )
    both = sorted(set(spec.constants) & set(checked.source.columns))
    if both:
        raise _refused("constant_clash", f"Constant {both[0]!r} is also a column of the source.", "constants")
    clash = [name for name in OUTPUT_COLUMNS if name in checked.passthrough]
    if clash:
        raise _refused(
            "column_clash",
            f"The source has a column {clash[0]!r}, which is the name of an output column. Rename it, or leave it out "
            "by listing the columns to keep in passthrough.",
            "source",
        )


def _check_first_rows(checked: CheckedDataset) -> None:
    first = next(checked.source.batches(used=set(), kept=checked.passthrough), None)
    if first is None or len(first) == 0:
        raise _refused("empty_source", f"Source {checked.source_path} has no rows.", "source")
    if len(first.faults) == len(first):
        raise _refused(
            "source_unreadable",
            f"None of the first {len(first)} rows of source {checked.source_path} can be read. "
            f"The first one: {first.faults[0].message}",
            "source",
        )


def _listed(columns: list[str]) -> str:
    shown = ", ".join(itertools.islice(columns, 30))
    return f"{shown} and {len(columns) - 30} more" if len(columns) > 30 else shown or "none"


def _refused(code: str, message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param=f"dataset.{field}")
