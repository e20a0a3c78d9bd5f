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
from airflow_batch_llm.service.path_pattern import PathPattern
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.storage.base import Storage, UnusableError
from airflow_batch_llm.storage.local_tree import OutsideError
from airflow_batch_llm.storage.tree import Entry
from airflow_batch_llm.store.files import FILE_ID, StoredFile

PARAM: Final = "dataset.source"
MOST_FILES: Final = 100_000
"""A list of them is held in memory and repeated in the manifest."""
MOST_PLACES: Final = 10_000
"""A look at each takes some tenths of a millisecond on a disk, and S3's answer in a bucket."""
MOST_CHARACTERS: Final = 4_096
"""Of one place. Linux takes no longer path, and S3 no longer key."""
MOST_NAMES: Final = 1_000_000
"""That patterns are held against: what is looked through for them takes a submit's time, found or not."""

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
        _check_places(places)
        look = _Look()
        found: dict[str, SourceFile] = {}
        try:
            for file in (file for place in places for file in self._files_at(place, look)):
                if file.uri in found:
                    raise _refused("file_twice", f"The source names {file.uri} twice.")
                if len(found) == MOST_FILES:
                    raise _refused("too_many_files", f"The source has more files than the {MOST_FILES:,} that go.")
                found[file.uri] = file
        except OutsideError as error:
            raise _refused("place_not_allowed", str(error)) from error
        except UnusableError as error:
            raise _refused(
                "source_not_usable",
                f"The source {_shown(error.filename)} cannot be read: {error.strerror}. "
                "Mend it, or name a pattern that leaves it out.",
            ) from error
        except FileNotFoundError as error:  # a bucket that is not there, or a file that went while it was looked at
            said = f"{error.strerror} ({_shown(error.filename)})." if error.strerror else str(error)
            raise _refused("source_not_found", f"The source is not there: {said}") from error
        return list(found.values())

    def _files_at(self, place: str, look: _Look) -> Iterator[SourceFile]:
        if UPLOADED.fullmatch(place):
            yield self._uploaded_file(place)
            return
        uri = self.places.resolve(place, param=PARAM)
        tree = self.places.tree(uri)
        entry = None if uri.endswith("/") else tree.stat(uri)
        if entry is not None:
            yield SourceFile(entry, PurePosixPath(uri).name, _format(uri), tree, partitions_of(uri))
        elif "*" in uri or "?" in uri:
            pattern = PathPattern(uri)
            yield from self._below(pattern.base, look.by(uri, pattern))
        elif tree.is_folder(uri):
            yield from self._below(uri.rstrip("/"), None)
        else:
            raise _refused("source_not_found", f"Source {uri} does not exist.")

    def _below(self, base: str, wanted: _Wanted | None) -> Iterator[SourceFile]:
        count = 0
        for entry in self.places.tree(base).list(base, wanted):
            named = entry.uri
            _check_text(named)
            form = FileFormat.of_name(named)
            if form is None:
                raise _refused(
                    "format_not_supported",
                    f"{_shown(named)}, which the source {wanted or base} takes in, does not end in {ENDINGS}. "
                    "Name a pattern such as *.parquet to leave it out; names that begin with . or _ are left out.",
                )
            self.places.resolve(named, param=PARAM)  # a symbolic link may lead out of the data root
            relative = named.removeprefix(base).lstrip("/")
            yield SourceFile(entry, relative, form, self.places.tree(base), partitions_of(named))
            count += 1
        if count == 0:
            what = f"matches no file: {wanted}" if wanted else f"{base} holds no file that is a table"
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


@dataclass
class _Look:
    """How many names were held against the patterns of one source."""

    names: int = 0

    def by(self, shown: str, pattern: PathPattern) -> _Wanted:
        return _Wanted(shown, pattern, self)

    def count(self) -> None:
        self.names += 1
        if self.names > MOST_NAMES:
            raise _refused(
                "too_many_files",
                f"There are more than {MOST_NAMES:,} files and folders where the patterns of the source begin. "
                "Begin them further down.",
            )


@dataclass(frozen=True)
class _Wanted:
    """What a pattern wants of a tree."""

    shown: str
    pattern: PathPattern
    look: _Look

    def file(self, uri: str) -> bool:
        self.look.count()
        return self.pattern.matches(uri)

    def folder(self, uri: str) -> bool:
        self.look.count()
        return self.pattern.leads_below(uri)

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class _Uploads:
    storage: Storage
    key: str

    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]:
        return self.storage.open(self.key)


def _check_text(uri: str) -> None:
    """A name in other bytes than UTF-8 can neither be sent nor stored, so no plan could name the file."""
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise _refused(
            "invalid_file_name",
            f"The name of {_shown(uri)}, which the source takes in, is not UTF-8. Rename it, or name a pattern that "
            "leaves it out.",
        ) from error


def _shown(name: str) -> str:
    """A file's name as a text, whatever bytes it has."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _format(uri: str) -> FileFormat:
    form = FileFormat.of_name(uri)
    if form is None:
        raise _refused("format_not_supported", f"Source {uri} does not end in {ENDINGS}.")
    return form


def partitions_of(uri: str) -> dict[str, str | None]:
    """What the Hive-style folders (``name=value``) say that a file lies in."""
    found: dict[str, str | None] = {}
    for part in PurePosixPath(uri).parent.parts:
        match = _PARTITION.fullmatch(part)
        if match:
            value = unquote(match[2])
            found[unquote(match[1])] = None if value == _HIVE_NULL else value
    return found


def _check_places(places: Sequence[str]) -> None:
    if len(places) > MOST_PLACES:
        raise _refused("too_many_places", f"The source names {len(places):,} places, and at most {MOST_PLACES:,} go.")
    longest = max(places, key=len)
    if len(longest) > MOST_CHARACTERS:
        raise _refused(
            "place_not_supported",
            f"The source {longest[:200]!r}… is {len(longest):,} characters long, and at most {MOST_CHARACTERS:,} go.",
        )


def _refused(code: str, message: str, **more: Any) -> InvalidRequestError:
    return InvalidRequestError(f"{message} Nothing was submitted.", code=code, param=PARAM, **more)
