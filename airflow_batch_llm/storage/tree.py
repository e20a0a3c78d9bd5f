"""Where users' tables lie. Unlike a storage's keys, these files are other people's: they come, change and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Entry:
    """A file as it was when it was looked at.

    ``uri`` is ``/an/absolute/path`` or ``s3://bucket/key``, ``size`` is in bytes. ``version`` is another text as soon
    as the content is another: the time of the last change in nanoseconds for a local file, the ETag for an object.
    """

    uri: str
    size: int
    version: str


class Wanted(Protocol):
    """What is wanted of the files below a folder. Nothing else is looked at."""

    def file(self, uri: str) -> bool:
        """Whether the file at ``uri`` is."""

    def folder(self, uri: str) -> bool:
        """Whether a file below this folder may be."""


class Tree(Protocol):
    """Files by URI. "Cannot be read" is never "is not there": trouble raises an :class:`OSError` of ``base.py``."""

    def stat(self, uri: str) -> Entry | None:
        """The file at ``uri``, or None where for certain no file is there."""

    def is_folder(self, uri: str) -> bool:
        """Whether a folder is at ``uri``: on S3, whether any key begins with it and a ``/``."""

    def list(self, uri: str, wanted: Wanted | None = None) -> Iterator[Entry]:
        """All files below a folder (or those that are wanted), however deep, in the order of their URIs' characters.

        What begins with ``.`` or ``_`` is left out, with all that is below it: writers keep there what is not data
        (``_SUCCESS``, ``_temporary``). A folder that is not there has no files; :meth:`is_folder` tells.
        """

    def open(self, entry: Entry) -> AbstractContextManager[BinaryIO]:
        """The bytes of that version of a file, as a stream that can seek.

        Raises :class:`~airflow_batch_llm.storage.base.ChangedError`, at the latest while it is read or when the block
        ends, if the file is another version by now, and :class:`FileNotFoundError` if it is gone.
        """

    def publish(self, path: Path, uri: str, *, over: Entry | None) -> None:
        """Has a finished local file, made in :meth:`scratch`, appear at ``uri``, whole and at once.

        ``over`` is that by the caller's look; None where nothing stood. Raises :class:`FileExistsError` if something
        stands there all the same, and :class:`~airflow_batch_llm.storage.base.ChangedError` if it is another version by
        now or gone, also where that came while the file was on its way.
        """

    def delete(self, uri: str) -> None:
        """Removes a file, if it is there."""

    def scratch(self, uri: str, *, owner: str | None = None, attempt: int = 1) -> AbstractContextManager[Path]:
        """A local place to write what :meth:`publish` will bring to ``uri``; whatever is there at the end is removed.

        Locally it is a hidden file in the target's folder, so that publishing is a matter of names. What the
        ``owner``'s earlier attempts left there goes, and one of them that only stood still finds nothing to publish any
        more (:class:`FileNotFoundError`), never what a later one is just writing.
        """
