"""Temporary files of processes that were killed go when the next process starts, and those of living ones stay."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_batch_llm.child_process import process_name
from airflow_batch_llm.service.scratch import scratch_folder, sweep
from airflow_batch_llm.settings import ServiceSettings
from tests.conftest import eventually

AT_WORK = """
import sys, tempfile
from pathlib import Path
from airflow_batch_llm.service.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])), tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "work.duckdb").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def at_work(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a temporary folder, and that folder."""
    command = [sys.executable, "-c", AT_WORK, str(root)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        try:
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


def test_what_a_killed_process_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    with at_work(tmp_path) as (killed, left), at_work(tmp_path) as (_, living):
        assert tmp_path in left.parents
        assert sweep(tmp_path) == 0
        killed.kill()
        killed.wait()
        assert (left / "work.duckdb").exists()
        with scratch_folder(tmp_path):
            assert not left.exists()
            assert (living / "work.duckdb").exists()
    assert sweep(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_ends_leaves_nothing_and_puts_its_files_nowhere_else_meanwhile(tmp_path: Path) -> None:
    before = tempfile.gettempdir()
    with scratch_folder(tmp_path) as folder, tempfile.NamedTemporaryFile() as file:
        assert folder in Path(file.name).parents
        assert sweep(tmp_path) == 0
    assert tempfile.gettempdir() == before
    assert list(tmp_path.iterdir()) == []


def test_the_duty_processes_keep_their_files_below_the_home_and_remove_what_dead_ones_left(
    settings: ServiceSettings,
) -> None:
    with at_work(settings.scratch_root) as (killed, left):
        killed.kill()
        killed.wait()
        command = [sys.executable, "-m", "airflow_batch_llm.service.duty_process", "plan", process_name()]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            assert child.stdin is not None
            with child.stdin as stream:
                stream.write(settings.to_json())
            try:
                eventually(lambda: not left.exists(), what="the dead one's files go")
                eventually(lambda: len(list(settings.scratch_root.iterdir())) == 2, what="a lock and a folder")
            finally:
                child.kill()
