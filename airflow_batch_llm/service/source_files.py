"""From the places that a dataset names to the files that hold its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import unquote

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import FilePurpose
from airflow_batch_llm.service.formats import ENDINGS, FileFormat
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.storage.local_tree import OutsideError
from airflow_batch_llm.storage.tree import Entry
from airflow_batch_llm.store.files import FILE_ID, StoredFile

PARAM: Final = "dataset.source"
MOST_FILES: Final = 100_000
"""A list of them is held in memory and repeated in the manifest."""

UPLOADED: Final = FILE_ID
_PARTITION: Final = re.compile(r"([^=/]+)=([^/]*)")
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


class Opens(Protocol):
    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, at one version of it."""

    entry: Entry
    relative: str
    """Its path below the folder that the dataset names; of a file that is named itself, its name."""
    format: FileFormat
    opener: Opens
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    """What its Hive-style folders (``name=value``) say."""

    def open(self) -> AbstractContextManager[BinaryIO]:
        return self.opener.open(self.entry)

    @property
    def is_uploaded(self) -> bool:
        return isinstance(self.opener, _Uploads)

    @property
    def uri(self) -> str:
        return self.entry.uri


class UploadedFiles(Protocol):
    """Where uploaded files are looked up; raises :class:`InvalidRequestError` or NotFoundError."""

    def __call__(self, file_id: str) -> StoredFile: ...


@dataclass(frozen=True)
class SourceFinder:
    """Finds the files of a source for one team."""

    places: Places
    storage: Storage
    uploaded: UploadedFiles

    def find(self, source: str | Sequence[str]) -> list[SourceFile]:
        """The files in the order of the places, those below one place by name. Raises :class:`InvalidRequestError`."""
        places = [source] if isinstance(source, str) else list(source)
        try:
            found = [file for place in places for file in self._files_at(place)]
        except OutsideError as error:
            raise _refused("place_not_allowed", str(error)) from error
        if len(found) > MOST_FILES:
            raise _refused("too_many_files", f"The source has {len(found):,} files, and at most {MOST_FILES:,} go.")
        twice = _twice([file.uri for file in found])
        if twice:
            raise _refused("file_twice", f"The source names {twice} twice.")
        return found

    def _files_at(self, place: str) -> Iterator[SourceFile]:
        if UPLOADED.fullmatch(place):
            yield self._uploaded_file(place)
            return
        uri = self.places.resolve(place, param=PARAM)
        tree = self.places.tree(uri)
        entry = None if uri.endswith("/") else tree.stat(uri)
        if entry is not None:
            yield SourceFile(entry, PurePosixPath(uri).name, _format(uri), tree, _partitions(PurePosixPath(uri).parent))
        elif "*" in uri or "?" in uri:
            yield from self._matching(uri)
        elif tree.is_folder(uri):
            yield from self._below(uri.rstrip("/"), None)
        else:
            raise _refused("source_not_found", f"Source {uri} does not exist.")

    def _matching(self, pattern: str) -> Iterator[SourceFile]:
        fixed = pattern[: re.search(r"[*?]", pattern).start()]  # type: ignore[union-attr]  # the caller saw one
        base = fixed.rpartition("/")[0]
        yield from self._below(base, pattern)

    def _below(self, base: str, pattern: str | None) -> Iterator[SourceFile]:
        matches = re.compile(_regex(pattern)) if pattern else None
        count = 0
        for entry in self.places.tree(base).list(base):
            named = entry.uri
            if matches and not matches.fullmatch(named):
                continue
            form = FileFormat.of_name(named)
            if form is None:
                raise _refused(
                    "format_not_supported",
                    f"{named}, which the source {pattern or base} takes in, does not end in {ENDINGS}. "
                    "Name a pattern such as *.parquet to leave it out; names that begin with . or _ are left out.",
                )
            self.places.resolve(named, param=PARAM)  # a symbolic link may lead out of the data root
            relative = named.removeprefix(base).lstrip("/")
            yield SourceFile(entry, relative, form, self.places.tree(base), _partitions(PurePosixPath(named).parent))
            count += 1
        if count == 0:
            what = f"matches no file: {pattern}" if pattern else f"{base} holds no file that is a table"
            raise _refused("source_not_found", f"Source {what}.")

    def _uploaded_file(self, file_id: str) -> SourceFile:
        stored = self.uploaded(file_id)
        if stored.purpose != FilePurpose.DATASET:
            raise _refused(
                "invalid_file_purpose",
                f"File {file_id} has the purpose {stored.purpose!r}; a table is uploaded with purpose 'dataset'.",
            )
        form = FileFormat.of_name(stored.filename)
        if form is None:
            raise _refused(
                "format_not_supported", f"The name of file {file_id} ({stored.filename}) ends not in {ENDINGS}."
            )
        entry = Entry(uri=file_id, size=stored.bytes, version=stored.sha256)
        return SourceFile(entry, file_id, form, _Uploads(self.storage, stored.storage_key))


@dataclass(frozen=True)
class _Uploads:
    storage: Storage
    key: str

    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]:
        return self.storage.open(self.key)


def _format(uri: str) -> FileFormat:
    form = FileFormat.of_name(uri)
    if form is None:
        raise _refused("format_not_supported", f"Source {uri} does not end in {ENDINGS}.")
    return form


def _partitions(folder: PurePosixPath) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for part in folder.parts:
        match = _PARTITION.fullmatch(part)
        if match:
            value = unquote(match[2])
            found[unquote(match[1])] = None if value == _HIVE_NULL else value
    return found


def _regex(pattern: str) -> str:
    """A shell-like pattern over whole paths: ``*`` and ``?`` stay within a folder, ``**/`` crosses any number."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    means = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(means.get(part, re.escape(part)) for part in parts)


def _twice(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _refused(code: str, message: str, **more: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param=PARAM, **more)
