"""The cheap look at a dataset before it is stored: everything that can be said without reading the whole table."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.output_schema import OutputField, parse_output_schema
from airflow_batch_llm.service.formats import FileFormat
from airflow_batch_llm.service.output_columns import OutputColumns
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.quarantine import check_no_source, check_quarantine_free, quarantine_of
from airflow_batch_llm.service.rendering import Renderer
from airflow_batch_llm.service.source_files import SourceFile, SourceFinder
from airflow_batch_llm.service.sources import Source, open_source
from airflow_batch_llm.service.targets import Owner, Target, check_carries, check_free, target_of
from airflow_batch_llm.service.template import Template
from airflow_batch_llm.wire import DatasetSpec

MOST_SAMPLES: Final = 128

_HELD: Final = {"structured_outputs", "response_format", "ignore_eos", "stop", "stop_token_ids"}
"""What would hold answers to something else than the choices or the schema, or cut them."""


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
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
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


class EmbeddingParameters(BaseModel):
    """What may stand in ``parameters`` for embeddings."""

    model_config = ConfigDict(extra="forbid")

    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: None = None
    """Refused with any value: nothing is truncated in silence."""


@dataclass(frozen=True)
class CheckedDataset:
    """A dataset whose places, columns and first rows were looked at."""

    files: list[SourceFile]
    first: Source
    """The first of the files, open."""
    target: Target
    templates: Sequence[Template]
    output: OutputColumns
    constants: dict[str, Any]
    quarantine: Target | None = None

    @property
    def used(self) -> set[str]:
        return {name for template in self.templates for name in template.names}

    @property
    def shown_source(self) -> str:
        """The source in a sentence."""
        more = f" and {len(self.files) - 1:,} more files" if len(self.files) > 1 else ""
        return f"{self.files[0].uri}{more}"

    def renderer(self, file: SourceFile) -> Renderer:
        return Renderer(self.templates, {**file.partitions, **self.constants})


def check_dataset(
    spec: DatasetSpec, endpoint: str, finder: SourceFinder, *, owner: Owner, writes: bool = True
) -> CheckedDataset:
    """Everything about ``spec`` that can be judged now. Raises :class:`InvalidRequestError` for what is wrong.

    A target that exists passes if ``overwrite`` is set, or if it is the ``owner``'s: written under the key or the
    series that the new batch is submitted under. Where it ``writes`` nothing, the target is not looked at.
    """
    _check_kind(spec, endpoint)
    _check_parameters(spec, endpoint)
    files = finder.find(spec.source)
    target, quarantine = _places(spec, finder.places, writes=writes)
    first = open_source(files[0])
    texts = [spec.input or ""] if endpoint == EMBEDDINGS else [message.content for message in spec.messages]
    output = output_columns(spec, endpoint)
    templates = [Template.parse(text) for text in texts]
    checked = CheckedDataset(files, first, target, templates, output, spec.constants, quarantine)
    _check_free_names(spec, checked)
    _check_first_rows(checked, [name for name in first.columns if spec.passthrough is None or name in spec.passthrough])
    kept = check_columns(spec, first, files[0])
    _check_names(spec, checked)
    _check_output(spec, checked, kept)
    if writes:
        if any(file.uri in (target.uri, target.uri.rstrip("/")) for file in files):
            raise _refused("target_is_source", f"Target {target.uri} is the source itself.", "target")
        check_free(finder.places, target, overwrite=spec.overwrite, owner=owner)
        if quarantine is not None:
            check_no_source(quarantine, files)
            check_quarantine_free(finder.places, quarantine, target, overwrite=spec.overwrite, owner=owner)
    return checked


def check_columns(spec: DatasetSpec, source: Source, file: SourceFile) -> list[str]:
    """The columns of one file that the target repeats. Raises :class:`InvalidRequestError` where it lacks some."""
    if source.fixed_columns:
        texts = [message.content for message in spec.messages] + ([spec.input] if spec.input else [])
        used = {name for text in texts for name in Template.parse(text).names}
        missing = sorted(used - {*source.columns, *spec.constants, *file.partitions})
        if missing:
            raise _unknown_name(missing[0], source.columns, list(file.partitions), file.uri)
    if spec.passthrough is None:
        return list(source.columns)
    lacking = [name for name in spec.passthrough if name not in source.columns]
    if lacking:
        raise _refused(
            "unknown_column",
            f"passthrough names {lacking[0]!r}, but {file.uri} has the columns {_listed(source.columns)}.",
            "passthrough",
        )
    return [name for name in source.columns if name in spec.passthrough]


def output_columns(spec: DatasetSpec, endpoint: str) -> OutputColumns:
    """The columns that the target adds."""
    return OutputColumns.of(spec, endpoint, _output_fields(spec))


def request_parameters(spec: DatasetSpec, endpoint: str) -> dict[str, Any]:
    """The fields that every request of the batch shares: greedy unless asked otherwise, held to choices or schema."""
    if endpoint == EMBEDDINGS:
        return {"encoding_format": "base64", **_given(spec.parameters)}
    parameters = {"temperature": 0.0, **_given(spec.parameters)}
    if spec.choices is not None:
        parameters |= {"structured_outputs": {"choice": spec.choices}, "logprobs": True}
    if spec.output_schema is not None:
        parameters["structured_outputs"] = {"json": spec.output_schema}
    return parameters


def content_sha256(
    spec: DatasetSpec, model: str, endpoint: str, files: Sequence[SourceFile], *, dry_run: bool = False
) -> str:
    """A hash over all that decides a batch's results: the spec, and each source file's place, size and version.

    Of an uploaded file it is the content that counts, not its id.
    """
    digest = hashlib.sha256()
    shown = spec.model_dump(mode="json", exclude={"overwrite", "source"})
    if spec.quarantine is None:
        del shown["quarantine"]  # so that a batch of before there were any keeps its hash
    digest.update(json.dumps([shown, model, endpoint, dry_run], sort_keys=True).encode())
    for file in files:
        place = "uploaded" if file.is_uploaded else file.uri
        digest.update(json.dumps([place, file.entry.size, file.entry.version]).encode())
    return digest.hexdigest()


def _places(spec: DatasetSpec, places: Places, *, writes: bool) -> tuple[Target, Target | None]:
    """Where target and quarantine go. A dry run may do without a target; then its quarantine has no format to be of."""
    if writes or spec.target:
        target = target_of(spec, places)
        return target, quarantine_of(spec, target, places)
    if spec.quarantine is not None:
        places.resolve(spec.quarantine, param="dataset.quarantine")
    return Target("", False, FileFormat(spec.format or "parquet")), None


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _check_kind(spec: DatasetSpec, endpoint: str) -> None:
    if endpoint == EMBEDDINGS:
        if spec.input is None or spec.messages:
            raise _refused("invalid_request", "Embeddings take `input`, a template for the text to embed.", "input")
        for name in ("choices", "output_schema"):
            if getattr(spec, name) is not None:
                raise _refused("invalid_request", f"{name} does not go with embeddings: a vector has none.", name)
        return
    if not spec.messages or spec.input is not None:
        raise _refused(
            "invalid_request", "Chat completions take `messages`, at least one; `input` is for embeddings.", "messages"
        )
    if spec.choices is not None and spec.output_schema is not None:
        raise _refused("invalid_request", "Give either choices or output_schema, not both.", "output_schema")
    if (spec.parameters.get("n") or 1) != 1 and (spec.choices or spec.output_schema):
        raise _refused(
            "invalid_request",
            "Several samples (n) go with plain text, not with choices or output_schema.",
            "parameters",
        )


def _check_parameters(spec: DatasetSpec, endpoint: str) -> None:
    known: type[BaseModel] = EmbeddingParameters if endpoint == EMBEDDINGS else SamplingParameters
    try:
        known.model_validate(spec.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        if first["type"] == "extra_forbidden":
            raise _refused(
                "unknown_parameter",
                f"Parameter {name!r} is not one that a table batch can pass to the engine at {endpoint}, which would "
                f"ignore it in silence. Known are: {', '.join(known.model_fields)}.",
                "parameters",
            ) from error
        raise _refused(
            "invalid_parameter", f"Parameter {name!r} is {first['input']!r}: {first['msg']}.", "parameters"
        ) from error
    if spec.choices is not None and len(set(spec.choices)) < len(spec.choices):
        raise _refused("invalid_choices", "Two of the choices are the same.", "choices")
    for name in ("choices", "output_schema"):
        held = _HELD & set(spec.parameters)
        if getattr(spec, name) is not None and held:
            raise _refused(f"invalid_{name}", f"{name} cannot go together with {sorted(held)[0]!r}.", name)


def _output_fields(spec: DatasetSpec) -> list[OutputField]:
    if spec.output_schema is None:
        return []
    try:
        return parse_output_schema(spec.output_schema)
    except ValueError as error:
        raise _refused(
            "invalid_output_schema", f"The output schema cannot be used: {error}", "output_schema"
        ) from error


def _check_names(spec: DatasetSpec, checked: CheckedDataset) -> None:
    columns, partitions = checked.first.columns, list(checked.files[0].partitions)
    unknown = sorted(checked.used - {*columns, *spec.constants, *partitions})
    if unknown:
        raise _unknown_name(unknown[0], columns, partitions, checked.files[0].uri)
    both = sorted(set(spec.constants) & {*columns, *partitions})
    if both:
        raise _refused("constant_clash", f"Constant {both[0]!r} is also a column of the source.", "constants")
    twice = sorted(set(partitions) & set(columns))
    if twice:
        raise _refused(
            "duplicate_column",
            f"{checked.files[0].uri} has a column {twice[0]!r}, and lies in a folder that says {twice[0]}=…: two "
            "values for one name.",
            "source",
        )


def _check_output(spec: DatasetSpec, checked: CheckedDataset, kept: list[str]) -> None:
    check_carries(checked.target, checked.output.schema, of_output=True)
    if checked.first.schema is not None:
        check_carries(checked.target, pa.schema([checked.first.schema.field(name) for name in kept]))


def _check_free_names(spec: DatasetSpec, checked: CheckedDataset) -> None:
    kept = [name for name in checked.first.columns if spec.passthrough is None or name in spec.passthrough]
    clash = [name for name in checked.output.schema.names if name in kept]
    if clash:
        raise _refused(
            "column_clash",
            f"The source has a column {clash[0]!r}, which is the name of an output column. Rename it, or leave it out "
            "by listing the columns to keep in passthrough.",
            "source",
        )


def _check_first_rows(checked: CheckedDataset, kept: list[str]) -> None:
    first = next(checked.first.batches(used=set(), kept=kept), None)
    if first is None or len(first) == 0:
        if len(checked.files) > 1:
            return  # whether all of them are empty is for the planner to say
        raise _refused("empty_source", f"Source {checked.shown_source} has no rows.", "source")
    if len(first.faults) == len(first):
        raise _refused(
            "source_unreadable",
            f"Source {checked.files[0].uri} has no row that can be read among the first {len(first):,}. "
            f"Of the very first: {first.faults[0].message}",
            "source",
        )


def _unknown_name(name: str, columns: list[str], partitions: list[str], uri: str) -> InvalidRequestError:
    folders = f" and lies in folders that say {', '.join(partitions)}" if partitions else ""
    return _refused(
        "unknown_column",
        f"The template names {{{name}}}, which is neither a column of the source ({uri} has the columns "
        f"{_listed(columns)}{folders}) nor a constant. Write {{{{{name}}}}} for the text {{{name}}} itself.",
        "messages",
    )


def _listed(columns: list[str]) -> str:
    shown = ", ".join(itertools.islice(columns, 30))
    return f"{shown} and {len(columns) - 30} more" if len(columns) > 30 else shown or "none"


def _refused(code: str, message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param=f"dataset.{field}")
