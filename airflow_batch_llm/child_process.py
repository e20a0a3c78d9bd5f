"""Child processes that do not outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final

_PR_SET_PDEATHSIG: Final = 1


def start_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int | None = None,
    output: IO[Any] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own that gets SIGTERM when the calling *thread* ends (on Linux).

    So the caller must be a thread that lives as long as the child should.
    """
    return subprocess.Popen(
        command,
        env=None if environment is None else {**os.environ, **environment},
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def end_group(child: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """Asks a child to end, ends it and all that is left of its group after the grace, and gives its exit code."""
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def process_name(pid: int) -> str:
    """What a process of this host is called where several hosts may look."""
    return f"{socket.gethostname()}:{pid}"


def named_pid(name: str) -> int | None:
    """The process id in such a name, if it is one of this host."""
    host, _, pid = name.rpartition(":")
    return int(pid) if host == socket.gethostname() and pid.isdigit() else None


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
