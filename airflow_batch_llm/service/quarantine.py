"""The quarantine of a table: a file of its own with a copy of the rows that failed, in the columns of the target.

Streams: holds the failed rows of one block, and of Parquet a row group of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import FAILED
from airflow_batch_llm.service.formats import ENDINGS, FileFormat
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.source_files import SourceFile
from airflow_batch_llm.service.target_writers import TargetWriter, open_writer
from airflow_batch_llm.service.targets import Owner, Target, read_manifest, sha256_at
from airflow_batch_llm.storage.tree import Entry
from airflow_batch_llm.wire import DatasetSpec

_FAILED: Final = pa.array([str(status) for status in FAILED], pa.string())


class QuarantineTakenError(Exception):
    """A file that is not this batch's stands where its quarantine should go."""


def quarantine_of(spec: DatasetSpec, target: Target, places: Places) -> Target | None:
    """The quarantine that a dataset names, None without one. Raises :class:`InvalidRequestError` where it cannot be
    one: it is a file in the format of ``target``, and no reader of a target folder may take it for a part of that."""
    if spec.quarantine is None:
        return None
    uri = places.resolve(spec.quarantine, param="dataset.quarantine")
    form = FileFormat.of_name(uri)
    if uri.endswith("/") or places.tree(uri).is_folder(uri):
        raise _refused("quarantine_is_folder", f"Quarantine {uri} is a folder. It is one file, in {ENDINGS}.")
    if form is None:
        raise _refused("format_not_supported", f"Quarantine {uri} does not end in {ENDINGS}.")
    if form.kind != target.format.kind:
        raise _refused(
            "format_mismatch",
            f"Quarantine {uri} is {form.kind} by its ending, but the target is {target.format.kind}, and a quarantine "
            f"has the target's columns. Let it end in .{target.format.kind}.",
        )
    if form.kind == "parquet":
        form = target.format  # which also says how it is compressed inside
    if uri == target.uri:
        raise _refused("quarantine_is_target", f"Quarantine {uri} is the target itself. Choose another place.")
    if target.folder and _is_seen_below(uri, target.uri):
        raise _refused(
            "quarantine_in_target",
            f"Quarantine {uri} lies in the target's folder, where it would be read as a part of the target. Choose a "
            "place outside, or a name that begins with _ (as in _quarantine.parquet), which readers of a folder leave "
            "out.",
        )
    return Target(uri, False, form)


def check_no_source(quarantine: Target, files: Sequence[SourceFile]) -> None:
    """Raises :class:`InvalidRequestError` where the quarantine would replace what is read."""
    if any(file.uri == quarantine.uri for file in files):
        raise _refused("quarantine_is_source", f"Quarantine {quarantine.uri} is a source itself.")


def check_quarantine_free(places: Places, quarantine: Target, target: Target, *, overwrite: bool, owner: Owner) -> None:
    """Raises :class:`InvalidRequestError` where a file stands that may not be replaced.

    One that an earlier batch of the same owner wrote may be, as long as it is as that one left it: somebody may have
    mended rows in it by hand.
    """
    standing = None if overwrite else places.tree(quarantine.uri).stat(quarantine.uri)
    if standing is None or _is_theirs(places, standing, target, owner):
        return
    raise _refused(
        "quarantine_exists",
        f"Quarantine {quarantine.uri} exists, and is not as a batch of this key or series has left it. Move it away, "
        "choose another place, or allow it to be replaced with overwrite.",
    )


@dataclass
class FailingRows:
    """Takes the rows of a target as they are written, in their order, and writes those that failed into ``path``.

    :meth:`begin` comes first; :meth:`close` last, and a file stands then even if no row has failed.
    """

    path: Path
    form: FileFormat
    output: pa.Schema
    kept: list[str] | None = None
    rows: int = 0
    _writer: TargetWriter | None = field(init=False, default=None)

    def begin(self, schema: pa.Schema) -> None:
        """Says which columns are repeated of the source; only the first time counts, for they are the same."""
        self._writer = self._writer or open_writer(self.path, self.form, schema, self.output, kept=self.kept)

    def write(self, staged: pa.RecordBatch, output: pa.RecordBatch) -> None:
        assert self._writer is not None  # noqa: S101 (begin comes first)
        failed = pc.is_in(output.column("llm_status"), value_set=_FAILED)
        count = failed.true_count
        if count:
            self._writer.write(staged.filter(failed), output.filter(failed))
            self.rows += count

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def _is_seen_below(uri: str, folder: str) -> bool:
    """Whether a file is one that readers of a folder find: they leave out what begins with ``.`` or ``_``."""
    if not uri.startswith(f"{folder}/"):
        return False
    parts = PurePosixPath(uri.removeprefix(f"{folder}/")).parts
    return not any(part.startswith((".", "_")) for part in parts)


def _is_theirs(places: Places, standing: Entry, target: Target, owner: Owner) -> bool:
    """Whether a batch of the owner has published exactly this file: by its note, or else by the target's manifest."""
    tree = places.tree(standing.uri)
    if owner.has_file(tree, standing):
        return True
    manifest = read_manifest(places.tree(target.uri), target.manifest_uri)
    listed = manifest.quarantine if manifest is not None and owner.named_by(manifest) else None
    return listed is not None and listed.uri == standing.uri and listed.sha256 == sha256_at(tree, standing)


def _refused(code: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param="dataset.quarantine")
