"""How finished files get to their place, and the manifest that says which belong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.quarantine import QuarantineTakenError, check_quarantine_free
from airflow_batch_llm.service.targets import (
    Owner,
    Target,
    TargetTakenError,
    batch_of,
    check_free,
    read_manifest,
    sha256_at,
    sha256_of,
)
from airflow_batch_llm.storage.base import ChangedError
from airflow_batch_llm.storage.tree import Entry, Tree
from airflow_batch_llm.wire import Manifest, TargetFile


@dataclass
class Publisher:
    """Publishes one batch's target. Said again after a crash, it ends where the first try would have ended.

    The order is target, quarantine, manifest: who has published the first is held to publish the others.
    """

    tree: Tree
    places: Places
    target: Target
    batch_id: str
    attempt: int
    """That of the duty."""
    overwrite: bool
    owner: Owner
    check: Callable[[], None]
    """Raises where this batch, or this attempt at it, may not write any more; asked right before each effect."""
    note: Callable[[str], None]
    """Keeps the SHA-256 of the first file, before it is published: it is this batch's, even without its manifest."""
    replaced: Callable[[Collection[str]], Collection[str]]
    """Those of the batches with files in the folder whose files go once this one's manifest stands there."""
    quarantine: Target | None = None
    _before: Manifest | None = field(init=False)
    _before_entry: Entry | None = field(init=False)
    """The manifest before as a file; looked at first, so that one that comes after it is never replaced."""
    _noted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._before_entry = self.tree.stat(self.target.manifest_uri)
        self._before = read_manifest(self.tree, self.target.manifest_uri)
        if self.target.folder and not self._is_own(self._before):
            self._check_free()
        self._check_quarantine()  # before the target: what stands in the way of one stands in the way of both

    def file(self, uri: str) -> AbstractContextManager[Path]:
        """A local path to write a file of the target or the quarantine to; it goes when the block ends."""
        return self.places.tree(uri).scratch(uri, owner=self.batch_id, attempt=self.attempt)

    def publish(self, path: Path, uri: str, rows: int) -> TargetFile:
        """Moves a finished file to its place. Raises :class:`TargetTakenError` if somebody else's stands there."""
        file = _described(path, uri, rows)
        with _untouched(TargetTakenError, f"Target {uri}"):
            if not self.target.folder:
                self._publish_alone(path, file, self._check_free)
                return file
            if not self._noted:
                self.note(file.sha256)
                self._noted = True
            self._appear(path, uri, self.tree.stat(uri))  # named after the batch: what stands there can only be its own
        return file

    def publish_quarantine(self, path: Path, uri: str, rows: int) -> TargetFile:
        """The same for the quarantine. Raises :class:`QuarantineTakenError` if somebody else's stands there."""
        file = _described(path, uri, rows)
        with _untouched(QuarantineTakenError, f"Quarantine {uri}"):
            self._publish_alone(path, file, self._check_quarantine)
        return file

    def publish_manifest(self, manifest: Manifest) -> None:
        """Says which files are the target. Those of the targets before it go after that."""
        uri = self.target.manifest_uri
        with self.file(uri) as path, _untouched(TargetTakenError, f"Manifest {uri}"):
            path.write_text(manifest.model_dump_json(indent=2) + "\n")
            self._appear(path, uri, self._before_entry)
        if self.target.folder:
            for old in sorted(self._old() - {file.uri for file in manifest.files}):
                self.check()
                self.tree.delete(old)

    def _publish_alone(self, path: Path, file: TargetFile, check_free: Callable[[], None]) -> None:
        """Brings a file to a place that is not named after the batch, so that it may be somebody else's."""
        tree = self.places.tree(file.uri)
        standing = tree.stat(file.uri)
        if standing is not None and _is(tree, standing, file):
            return  # an attempt that died right after publishing has done it
        if standing is not None:
            check_free()
        self.note(file.sha256)
        self._appear(path, file.uri, standing)

    def _appear(self, path: Path, uri: str, standing: Entry | None) -> None:
        self.check()
        self.places.tree(uri).publish(path, uri, over=standing)

    def _old(self) -> set[str]:
        """The files of the manifest before, and those of batches that did not get to theirs, or not to removing."""
        of_batch = {entry.uri: batch_of(entry.uri) for entry in self.tree.list(self.target.uri)}
        replaced = self.replaced({batch_id for batch_id in of_batch.values() if batch_id is not None})
        before = {file.uri for file in self._before.files} if self._before is not None else set()
        return {uri for uri in before if uri.startswith(f"{self.target.uri}/")} | {
            uri for uri, batch_id in of_batch.items() if batch_id in replaced
        }

    def _is_own(self, manifest: Manifest | None) -> bool:
        return manifest is not None and manifest.batch_id == self.batch_id

    def _check_free(self) -> None:
        try:
            check_free(self.places, self.target, overwrite=self.overwrite, owner=self.owner)
        except InvalidRequestError as error:
            raise TargetTakenError(error.message.removesuffix(" Nothing was submitted.")) from error

    def _check_quarantine(self) -> None:
        if self.quarantine is None:
            return
        try:
            check_quarantine_free(self.places, self.quarantine, self.target, overwrite=self.overwrite, owner=self.owner)
        except InvalidRequestError as error:
            raise QuarantineTakenError(error.message.removesuffix(" Nothing was submitted.")) from error


def _described(path: Path, uri: str, rows: int) -> TargetFile:
    return TargetFile(uri=uri, rows=rows, bytes=path.stat().st_size, sha256=sha256_of(path))


def _is(tree: Tree, standing: Entry, file: TargetFile) -> bool:
    return standing.size == file.bytes and sha256_at(tree, standing) == file.sha256


@contextmanager
def _untouched(error: type[Exception], what: str) -> Iterator[None]:
    """Tells of what came to stand in the way after the last look."""
    try:
        yield
    except (FileExistsError, ChangedError) as found:
        raise error(
            f"{what} was written by somebody else while the batch ran. It was not touched; "
            "move it away and the batch will end."
        ) from found
