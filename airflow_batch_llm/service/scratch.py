"""A folder for the temporary files of one process, which the next one of the service removes if this one was killed.

Whether a process lives is told by the lock that it holds on a file beside its folder: the kernel ends that with the
process, so neither a process id that was given out again nor another container on the same disk is mistaken.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_LOCK: Final = ".lock"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Has all of Python's temporary files of this process below a new folder in ``root`` for the length of the block.

    First removes the folders of processes that are dead.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    sweep(root)
    lock = root / f"{uuid.uuid4().hex}{_LOCK}"
    with _held(lock):
        folder = lock.with_suffix("")
        folder.mkdir(mode=0o700)
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def sweep(root: Path) -> int:
    """Removes the folders of processes that are dead, and gives how many those were."""
    removed = 0
    for lock in root.glob(f"*{_LOCK}"):
        handle = _opened(lock)
        if handle is None:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process lives
        else:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            removed += 1
            log.info("removed the temporary files of a process that died: %s", lock.with_suffix(""))
        finally:
            os.close(handle)
    return removed


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """The lock's file appears under its name locked, so that nobody finds it without its holder."""
    new = lock.with_suffix(".new")
    handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody else gets one there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        new.rename(lock)
        yield
    finally:
        os.close(handle)


def _opened(lock: Path) -> int | None:
    try:
        return os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return None
