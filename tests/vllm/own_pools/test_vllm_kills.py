"""Any process may be killed at any time: everything comes back by itself, and the batch completes.

One pool for all kills, since an engine takes long to start. The engine logs each request, so that a test can count
the rows that ran twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pool as demo_pool
import psutil
import pytest
from sqlalchemy import func, select

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import attempts, chunks, duties
from tests.conftest import eventually, running_pool
from tests.vllm.conftest import Tables, sample_texts

pytestmark = pytest.mark.vllm

ROWS = int(os.environ.get("KILL_ROWS", "2000"))
MAX_NUM_SEQS = 64
WINDOW = 2 * MAX_NUM_SEQS


@dataclass
class Killable(Tables):
    """A pool whose processes can be found, with its store."""

    database: Database
    ran_twice: dict[str, int]

    @property
    def up(self) -> psutil.Process:
        return psutil.Process(self.pool.process.pid)

    def tree(self) -> list[psutil.Process]:
        return [self.up, *self.up.children(recursive=True)]

    def find(self, *words: str) -> psutil.Process:
        """The one process of the pool with these words in its command line."""

        def look() -> list[psutil.Process]:
            found = []
            for process in self.up.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if set(words) <= set(process.cmdline()):
                        found.append(process)
            return found

        found = eventually(look, what=f"a process {words}")
        assert len(found) == 1, found
        return found[0]

    @property
    def worker(self) -> psutil.Process:
        return self.find("airflow_batch_llm", "work")

    @property
    def service(self) -> psutil.Process:
        return self.find("airflow_batch_llm", "serve")

    @property
    def engine(self) -> psutil.Process:
        return self.find("serve", "--uds")

    def asked(self, batch_id: str) -> Counter[int]:
        """How often each row was with the engine, by its log."""
        log = (self.pool.home / "workers" / "local" / "engine.log").read_text(errors="replace")
        found = re.findall(rf"Received request chatcmpl-{batch_id}-(\d+)", log)
        return Counter(int(row) for row in found)

    def twice(self, batch_id: str) -> int:
        """How many rows ran twice, after a check that every row ran."""
        asked = self.asked(batch_id)
        assert set(asked) == set(range(ROWS))
        assert max(asked.values()) <= 2
        return sum(times > 1 for times in asked.values())

    def outcomes(self, batch_id: str) -> Counter[str]:
        query = select(attempts.c.outcome).join(chunks, chunks.c.id == attempts.c.chunk_id)
        with self.database.reading() as connection:
            return Counter(connection.scalars(query.where(chunks.c.batch_id == batch_id)))

    def rows_lost(self, batch_id: str) -> int:
        query = select(func.sum(attempts.c.rows_lost)).join(chunks, chunks.c.id == attempts.c.chunk_id)
        with self.database.reading() as connection:
            return connection.scalar(query.where(chunks.c.batch_id == batch_id)) or 0

    def duty(self, batch_id: str, kind: DutyKind) -> tuple[int, int | None]:
        """The attempt at a duty, and the process that holds it now."""
        query = select(duties.c.attempt, duties.c.holder, duties.c.lease_until, duties.c.done)
        with self.database.reading() as connection:
            row = connection.execute(query.where(duties.c.batch_id == batch_id, duties.c.kind == kind)).first()
        if row is None:
            return 0, None
        return row.attempt, None if row.done or row.lease_until is None else int(row.holder.rpartition("-")[2])


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killable]:
    folder = tmp_path_factory.mktemp("killable")
    with (
        running_pool(folder, engine_arguments=["--enable-log-requests"], max_num_seqs=MAX_NUM_SEQS) as pool,
        pool.client() as client,
    ):
        database = Database(ServiceSettings(home=pool.home, data_roots=()).store_url)
        killable = Killable(pool, client, database, {})
        yield killable
        database.close()
        print("\nrows that ran twice:", killable.ran_twice)


def _submit(killable: Killable, name: str) -> str:
    batch_id = killable.submit(name, sample_texts(ROWS), parameters={"max_tokens": 2})
    killable.until(batch_id, rows_done=500)
    return batch_id


def _check(killable: Killable, name: str, batch_id: str) -> int:
    assert {row["llm_status"] for row in killable.target(batch_id)} == {"success"}
    killable.ran_twice[name] = killable.twice(batch_id)
    return killable.ran_twice[name]


def test_a_killed_service_comes_back_and_no_row_runs_twice(killable: Killable) -> None:
    batch_id = _submit(killable, "service")
    before = killable.service
    family = before.children(recursive=True)
    before.kill()
    assert _check(killable, "service", batch_id) == 0
    assert killable.service.pid != before.pid
    eventually(lambda: not any(process.is_running() for process in family), what="its duty processes end")


def test_killed_duties_are_done_again_and_leave_nothing_lying_about(killable: Killable) -> None:
    payload = [os.urandom(12_500).hex() for _ in range(ROWS)]  # planning and assembling take long enough to be hit
    batch_id = killable.submit("duties", sample_texts(ROWS), payload=payload, parameters={"max_tokens": 1})
    staged = killable.pool.home / "storage" / "batches" / batch_id
    effects = {
        DutyKind.PLAN: lambda: any(path.is_file() for path in staged.glob("plan-2/**/*")),
        DutyKind.ASSEMBLE: lambda: any(killable.pool.data_root.glob(".*")),
    }
    for kind, has_written in effects.items():
        _kill_holder(killable, batch_id, kind, attempt=1)
        _kill_holder(killable, batch_id, kind, attempt=2, once=has_written)
    assert _check(killable, "plan and assemble processes", batch_id) == 0
    assert [killable.duty(batch_id, kind) for kind in effects] == [(3, None), (3, None)]
    assert {path.name for path in staged.glob("plan-*")} == {"plan-3"}
    assert not list(killable.pool.data_root.glob(".*"))


def _kill_holder(
    killable: Killable, batch_id: str, kind: DutyKind, *, attempt: int, once: Callable[[], bool] = lambda: True
) -> None:
    """Kills the process that does a duty, as soon as it has it and ``once`` is true.

    It stands still whenever that is looked at, and runs for some milliseconds in between: else it may be done by then.
    """
    pid = eventually(lambda: killable.duty(batch_id, kind)[1], seconds=120, what=f"{kind} is under way")
    holder = psutil.Process(pid)

    def written() -> bool:
        holder.resume()
        time.sleep(0.005)
        holder.suspend()
        return once()

    holder.suspend()
    while not (once() or written()):
        assert killable.duty(batch_id, kind) == (attempt, pid), f"{kind} ended before it had written anything"
    assert killable.duty(batch_id, kind) == (attempt, pid)
    holder.kill()
    eventually(lambda: killable.duty(batch_id, kind)[1] != pid, what="its lease is ended")


def test_a_killed_engine_comes_back_and_only_rows_in_flight_run_twice(killable: Killable) -> None:
    batch_id = _submit(killable, "engine")
    before = killable.engine
    before.kill()
    assert _check(killable, "engine", batch_id) <= WINDOW
    assert killable.engine.pid != before.pid
    assert killable.outcomes(batch_id)["engine_died"] >= 1
    assert 1 <= killable.rows_lost(batch_id) <= WINDOW


def test_a_killed_worker_comes_back_and_only_uncommitted_rows_run_twice(killable: Killable) -> None:
    batch_id = _submit(killable, "worker")
    worker, engine = killable.worker, killable.engine
    worker.suspend()  # so that what is counted now is what the kill finds
    committed = killable.client.get(batch_id).progress.rows_done
    worker.kill()
    eventually(lambda: not engine.is_running(), seconds=15, what="the engine ends with its worker")
    asked = sum(killable.asked(batch_id).values())
    assert _check(killable, "worker", batch_id) <= asked - committed
    assert killable.worker.pid != worker.pid


def test_a_worker_that_is_asked_to_end_gives_back_what_it_has_not_done_and_nothing_runs_twice(
    killable: Killable,
) -> None:
    batch_id = _submit(killable, "drain")
    worker = killable.worker
    worker.terminate()
    eventually(lambda: not worker.is_running(), seconds=40, what="the worker drains")
    asked = killable.asked(batch_id)
    assert set(asked.values()) == {1}
    assert killable.client.get(batch_id).progress.rows_done == len(asked) < ROWS
    assert killable.outcomes(batch_id)["drained"] >= 1
    killable.ran_twice["worker drained"] = 0  # every row that was asked is committed, and not asked again


def test_nothing_is_left_when_the_pool_itself_is_killed(killable: Killable) -> None:
    assert killable.engine.is_running()
    family = killable.tree()
    assert len(family) >= 6  # itself, service, two duty processes, worker, engine
    killable.up.kill()
    eventually(lambda: not any(_lives(process) for process in family), seconds=40, what=f"the end of {family}")


def test_nothing_is_left_of_a_pool_that_is_ended_while_its_engine_starts(tmp_path: Path) -> None:
    with demo_pool.running_pool(tmp_path) as pool:
        up = psutil.Process(pool.process.pid)
        family = eventually(lambda: len(up.children(recursive=True)) == 5 and up.children(recursive=True))
    assert pool.process.returncode == 0
    assert not any(_lives(process) for process in family)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
