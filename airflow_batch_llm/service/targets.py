"""The target of a table: where it goes in which format, whether the place is free, what the format can carry."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

import pyarrow as pa
from pydantic import ValidationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.formats import ENDINGS, FileFormat
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.source_files import UPLOADED
from airflow_batch_llm.storage.base import UnusableError
from airflow_batch_llm.storage.tree import Entry, Tree
from airflow_batch_llm.store.target_notes import TargetNotes
from airflow_batch_llm.wire import FOLDER_MANIFEST, DatasetSpec, Manifest

_OF_BATCH: Final = re.compile(r"-(batch_[0-9a-f]{32})\Z")


class TargetTakenError(Exception):
    """A file that is not this batch's stands where the target should go."""


@dataclass(frozen=True)
class Target:
    """``uri`` is a file, or (with ``folder``) a folder without the ``/`` at its end."""

    uri: str
    folder: bool
    format: FileFormat

    @property
    def manifest_uri(self) -> str:
        return f"{self.uri}/{FOLDER_MANIFEST}" if self.folder else f"{self.uri}.manifest.json"

    def file_uri(self, relative: str, number: int, batch_id: str) -> str:
        """Where the rows of one source file go. The name holds the batch's id, so that no batch writes another's."""
        if not self.folder:
            return self.uri
        path = PurePosixPath(relative)
        form = FileFormat.of_name(path.name)
        stem = f"part-{number:05d}" if form is None or UPLOADED.match(path.name) else form.stem(path.name)
        name = f"{stem}-{batch_id}{self.format.ending}"
        return f"{self.uri}/{path.parent / name}"


@dataclass(frozen=True)
class Owner:
    """Whose a target may be: that of a batch with this key and series, and with those before it, of one team."""

    team: str
    names: frozenset[str]
    noted: Callable[[], Mapping[str, Collection[str]]]
    """The batches under these names, and the SHA-256 of what each was about to publish first."""

    @classmethod
    def of(cls, team: str, key: str | None, series: str | None, notes: TargetNotes) -> Self:
        names = frozenset(name for name in (key, series) if name is not None)
        return cls(team, names, partial(notes.of, team, names))

    def named_by(self, manifest: Manifest | None) -> bool:
        """Whether a manifest is theirs: it says so, whether the store still knows its batch or not.

        Of one that names no team, for it is older than that, the store alone can tell.
        """
        if manifest is None or not {manifest.key, manifest.series} & self.names:
            return False
        return manifest.batch_id in self.noted() if manifest.team is None else manifest.team == self.team

    def has_file(self, tree: Tree, file: Entry) -> bool:
        """Whether a single target is theirs that may not have its manifest yet."""
        hashes = {sha256 for noted in self.noted().values() for sha256 in noted}
        return bool(hashes) and sha256_at(tree, file) in hashes

    def has_files(self, files: Iterable[Entry]) -> bool:
        """Whether all files of a folder are theirs: their names say whose they are."""
        ids = self.noted()
        return all(batch_of(file.uri) in ids for file in files)


def target_of(spec: DatasetSpec, places: Places) -> Target:
    """The target that a dataset names. Raises :class:`InvalidRequestError` where it cannot be one."""
    if spec.target is None:
        raise _refused("missing_required_parameter", "A table needs a target.")
    uri = places.resolve(spec.target, param="dataset.target")
    named = FileFormat.of_name(uri)
    if uri.endswith("/") or (named is None and places.tree(uri).is_folder(uri)):
        kind = spec.format or "parquet"
        return Target(uri.rstrip("/"), True, FileFormat(kind, _compression(spec, kind)))
    if named is None:
        raise _refused(
            "format_not_supported",
            f"Target {uri} does not end in {ENDINGS}. A folder ends with /.",
        )
    if spec.format not in (None, named.kind):
        raise _refused("format_mismatch", f"Target {uri} is {named.kind} by its ending, but format is {spec.format}.")
    if named.kind == "parquet":
        named = FileFormat("parquet", _compression(spec, "parquet"))
    elif spec.compression not in (None, named.compression):
        raise _refused(
            "format_mismatch",
            f"Target {uri} has the compression {named.compression} by its ending, but compression is "
            f"{spec.compression}.",
        )
    if places.tree(uri).is_folder(uri):
        raise _refused("target_is_folder", f"Target {uri} is a folder. Name a file, or end the folder with /.")
    return Target(uri, False, named)


def check_free(places: Places, target: Target, *, overwrite: bool, owner: Owner) -> None:
    """Raises :class:`InvalidRequestError` where a target exists that may not be replaced."""
    if overwrite:
        return
    tree = places.tree(target.uri)
    try:
        manifest = read_manifest(tree, target.manifest_uri)
        if owner.named_by(manifest) or _is_free(tree, target, manifest, owner):
            return
    except UnusableError as error:
        raise _refused(
            "target_not_usable",
            f"Target {target.uri} cannot be used for what stands there: {error.strerror} ({error.filename}). "
            "Choose another target, or mend this one.",
        ) from error
    written = f"batch {manifest.batch_id} wrote it" if manifest else "no manifest stands beside it"
    what = "is a folder with tables in it" if target.folder else "exists"
    raise _refused(
        "target_exists",
        f"Target {target.uri} {what} ({written}). Choose another target, or allow it to be replaced with overwrite.",
    )


def _is_free(tree: Tree, target: Target, manifest: Manifest | None, owner: Owner) -> bool:
    if target.folder:
        return manifest is None and owner.has_files(tree.list(target.uri) if tree.is_folder(target.uri) else ())
    standing = tree.stat(target.uri)
    return standing is None or owner.has_file(tree, standing)


def batch_of(uri: str) -> str | None:
    """The batch whose a file of a folder is by the name that :meth:`Target.file_uri` gave it."""
    name = PurePosixPath(uri).name
    form = FileFormat.of_name(name)
    if form is None or not (found := _OF_BATCH.search(form.stem(name))):
        return None
    return found[1]


def check_carries(target: Target, schema: pa.Schema, *, of_output: bool = False) -> None:
    """Raises :class:`InvalidRequestError` for a column that the target's format would bend."""
    kind = target.format.kind
    instead = (
        "ask for something else" if of_output else "leave the column out by listing the columns to keep in passthrough"
    )
    for column in schema:
        if kind == "parquet" and _has_empty_struct(column.type):
            raise _refused(
                "column_not_supported",
                f"Column {column.name!r} holds only empty objects, which a .parquet target cannot hold. "
                f"Use a .jsonl target, or {instead}.",
            )
        if kind != "parquet" and not _plain(column.type, nested=kind == "jsonl"):
            raise _refused(
                "column_not_supported",
                f"Column {column.name!r} is of type {column.type}, which a .{kind} target cannot hold unharmed. "
                f"Use a .parquet target, or {instead}.",
            )


def read_manifest(tree: Tree, uri: str) -> Manifest | None:
    """The manifest at a place, if there is one that can be read."""
    entry = tree.stat(uri)
    if entry is None:
        return None
    try:
        with tree.open(entry) as stream:
            return Manifest.model_validate_json(stream.read())
    except (FileNotFoundError, ValidationError):
        return None


def sha256_at(tree: Tree, entry: Entry) -> str:
    with tree.open(entry) as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compression(spec: DatasetSpec, kind: str) -> str:
    return spec.compression or ("zstd" if kind == "parquet" else "none")


def _plain(kind: Any, *, nested: bool) -> bool:
    types = pa.types
    if nested and (types.is_list(kind) or types.is_large_list(kind)):
        return _plain(kind.value_type, nested=True)
    if nested and types.is_struct(kind):
        return all(_plain(column.type, nested=True) for column in kind)
    if types.is_dictionary(kind):
        return _plain(kind.value_type, nested=nested)
    if types.is_timestamp(kind) or types.is_time(kind):
        return bool(kind.unit != "ns")
    return any(
        check(kind)
        for check in (
            types.is_string,
            types.is_large_string,
            types.is_integer,
            types.is_floating,
            types.is_boolean,
            types.is_date,
            types.is_null,
        )
    )


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return pa.types.is_nested(kind) and any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))


def _refused(code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param="dataset.target")
