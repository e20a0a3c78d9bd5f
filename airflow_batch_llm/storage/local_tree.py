"""Tables on a file system that this process sees."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from airflow_batch_llm.storage.base import ChangedError, UnusableError
from airflow_batch_llm.storage.tree import Entry, Wanted

MOST_FOLDERS: Final = 200
"""In one another, below the one that is listed: far more than any table has, and far from where Python gives up."""


class OutsideError(PermissionError):
    """A path lies outside the roots, or a link in it leads out. Nothing was touched."""


class LocalTree:
    """Files by absolute path. Links are followed, but where ``roots`` are given never out of them.

    A file that is replaced by one of the same size within a tick of the file system's clock (some milliseconds) looks
    unchanged.
    """

    def __init__(self, roots: Iterable[Path] = ()) -> None:
        self._roots = tuple(root.resolve() for root in roots)

    def stat(self, uri: str) -> Entry | None:
        path = self._path(uri)
        found = _status(path)
        if found is None or stat.S_ISDIR(found.st_mode):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise UnusableError(errno.EINVAL, "This is neither a file nor a folder", uri)
        return _entry(path, found)

    def is_folder(self, uri: str) -> bool:
        found = _status(self._path(uri))
        return found is not None and stat.S_ISDIR(found.st_mode)

    def list(self, uri: str, wanted: Wanted | None = None) -> Iterator[Entry]:
        if self.is_folder(uri):
            yield from self._below(self._path(uri), wanted, above=())

    @contextmanager
    def open(self, entry: Entry) -> Iterator[BinaryIO]:
        path = self._path(entry.uri)
        with path.open("rb") as stream:
            # What was opened, whatever links were put in since the look at the path.
            self._check_inside(Path(f"/proc/self/fd/{stream.fileno()}"), entry.uri)
            _check_unchanged(stream, entry)
            yield stream
            if not stream.closed:
                _check_unchanged(stream, entry)

    def publish(self, path: Path, uri: str, *, over: Entry | None) -> None:
        target = self._path(uri)
        _sync(path)
        if over is None:
            os.link(path, target)
        elif self.stat(uri) == over:  # looked at again behind the sync, which can take long
            path.replace(target)
        else:
            raise ChangedError(f"{uri} is not the file any more that was looked at. It was not touched.")
        _sync(target.parent)

    def delete(self, uri: str) -> None:
        with contextlib.suppress(NotADirectoryError):
            self._path(uri).unlink(missing_ok=True)

    @contextmanager
    def scratch(self, uri: str, *, owner: str | None = None, attempt: int = 1) -> Iterator[Path]:
        target = self._path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = f".{target.name}.{owner or uuid.uuid4().hex}"
        for earlier in range(1, attempt):  # one that only stood still has nothing to publish from then on
            target.with_name(f"{hidden}.{earlier}").unlink(missing_ok=True)
        path = target.with_name(f"{hidden}.{attempt}")
        path.unlink(missing_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _path(self, uri: str) -> Path:
        path = Path(uri)
        if not path.is_absolute():
            raise ValueError(f"{uri!r} is not an absolute path.")
        self._check_inside(path, uri)
        return path

    def _check_inside(self, path: Path, uri: str) -> None:
        real = Path(os.path.realpath(path))
        if self._roots and not any(real.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(str(root) for root in self._roots)
            raise OutsideError(f"{uri} lies outside of {allowed}, or leads out of it by a link. It was not touched.")

    def _below(self, folder: Path, wanted: Wanted | None, *, above: tuple[str, ...]) -> Iterator[Entry]:
        """What is below ``folder``, which lies in the folders ``above``, their links resolved."""
        real = os.path.realpath(self._path(str(folder)))
        if len(above) > MOST_FOLDERS:
            raise UnusableError(errno.ELOOP, f"More than {MOST_FOLDERS} folders lie in one another", str(folder))
        if real in above:
            raise UnusableError(errno.ELOOP, "A link leads back to a folder above it", str(folder))
        for name in _names(folder):
            path = folder / name.removesuffix("/")
            if name.endswith("/"):
                if wanted is None or wanted.folder(str(path)):
                    yield from self._below(path, wanted, above=(*above, real))
            elif wanted is not None and not wanted.file(str(path)):
                continue
            elif (entry := self.stat(str(path))) is not None:
                yield entry
            elif path.is_symlink():
                raise UnusableError(errno.ENOENT, "A link leads to nothing", str(path))


def _names(folder: Path) -> list[str]:
    """The names in a folder, those of folders with a ``/``: so their order is also that of everything below them."""
    with os.scandir(folder) as found:
        seen = [entry for entry in found if not entry.name.startswith((".", "_"))]
        return sorted(f"{entry.name}/" if _leads_to_folder(entry) else entry.name for entry in seen)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """A link whose end is not to be found is taken for a file: only where that is wanted it is looked at."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UnusableError(errno.ELOOP, "Too many symbolic links, one behind the other", str(path)) from error


def _entry(path: Path, found: os.stat_result) -> Entry:
    return Entry(str(path), found.st_size, f"{found.st_mtime_ns}")


def _check_unchanged(stream: BinaryIO, entry: Entry) -> None:
    found = _entry(Path(entry.uri), os.fstat(stream.fileno()))
    if (found.size, found.version) != (entry.size, entry.version):
        raise ChangedError(
            f"{entry.uri} is not the file any more that was looked at: it had {entry.size:,} bytes then and has "
            f"{found.size:,} now, or was written again. What was read of it does not count."
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
