"""Child processes that do not outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
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


@functools.cache
def process_name() -> str:
    """What this process is called where several hosts look: no other process ever has the same name.

    Host names and process ids come again (two containers, a restart), so the name has the kernel's boot, the
    namespace of the process ids and the moment of the start too. Where the system does not tell them it is random.
    """
    place, started = _place(), _started(os.getpid())
    if place is None or started is None:
        return f"{_host()}:{uuid.uuid4().hex}"
    return f"{_host()}:{place}:{os.getpid()}:{started}"


def child_name(parent: str, duty: str, pid: int) -> str:
    """What a child of the process ``parent`` is called by both of them."""
    return f"{parent}/{duty}-{pid}"


def is_known_dead(name: str) -> bool:
    """Whether the process with such a name has certainly ended: one that ran where this one runs, and is not there now.

    Of a process of another host, container or boot nothing is known, so it is not said to be dead.
    """
    parts = name.split(":")
    if len(parts) != 4 or not (parts[2] + parts[3]).isdigit():
        return False
    return parts[1] == _place() and _started(int(parts[2])) != int(parts[3])


def _host() -> str:
    return socket.gethostname().replace(":", "-")[:63]


@functools.cache
def _place() -> str | None:
    """Within which a process id names one process at a time: this boot of this kernel, and a namespace of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the boot; None where there is none (any more)."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *numbers = told.rpartition(")")[2].split()  # the command before it may hold anything
    return None if state in "ZX" else int(numbers[18])


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
