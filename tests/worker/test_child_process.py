"""Children do not outlive their parent, and none of a group is left when it was ended."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from airflow_batch_llm.child_process import end_group, is_known_dead, process_name, start_child
from tests.conftest import eventually

WAITS = "import time; time.sleep(60)"
PARENT = """
import sys, time
from airflow_batch_llm.child_process import start_child
print(start_child([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""
DEAF_WITH_CHILD = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not _gone(child)
        parent.kill()
    eventually(lambda: _gone(child), seconds=5)


def test_a_child_is_in_a_group_of_its_own() -> None:
    child = start_child([sys.executable, "-c", WAITS])
    assert psutil.Process(child.pid).terminal() is None
    assert end_group(child, grace_seconds=5) < 0


def test_what_does_not_end_when_asked_is_killed_with_all_that_it_started() -> None:
    child = start_child([sys.executable, "-c", DEAF_WITH_CHILD], output=subprocess.PIPE)  # type: ignore[arg-type]
    assert child.stdout is not None
    with child.stdout:
        grandchild = int(child.stdout.readline())
    assert end_group(child, grace_seconds=0.2) == -9
    eventually(lambda: _gone(grandchild), seconds=5)


def test_ending_what_has_ended_gives_its_code() -> None:
    child = start_child([sys.executable, "-c", "raise SystemExit(3)"])
    child.wait()
    assert end_group(child, grace_seconds=0) == 3


NAMED = "from airflow_batch_llm.child_process import process_name; print(process_name(), flush=True); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_a_process_of_this_very_place_that_is_gone_is_known_to_be_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        name = process.stdout.readline().decode().strip()
        assert not is_known_dead(name)
        process.kill()
        eventually(lambda: is_known_dead(name), seconds=5)  # also before anybody has waited for it
    assert is_known_dead(name)
    host, place, pid, started = process_name().split(":")
    assert not is_known_dead(process_name())
    assert is_known_dead(f"{host}:{place}:{pid}:{int(started) - 1}")  # its process id came again
    elsewhere = (f"{host}:{place[::-1]}:{pid}:1", f"{host}:{pid}", f"{host}:{'0' * 32}", "h", "")
    assert [name for name in elsewhere if is_known_dead(name)] == []
