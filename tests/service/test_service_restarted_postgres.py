"""Postgres is stopped and started again under a running service: calls are refused for a while, and nothing ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import free_port
from sqlalchemy import insert, select

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.settings import DATABASE_URL_VARIABLE, TOKEN_VARIABLE
from airflow_batch_llm.store.database import Database, StoreTroubleError
from airflow_batch_llm.store.tables import team_secrets
from airflow_batch_llm.wire import BatchCreate
from airflow_batch_llm.worker.heartbeat import _Beating
from tests.conftest import RunningService, eventually
from tests.postgres import Postgres, running_postgres
from tests.service.answering import AnsweringWorker

SOON = 120
"""Seconds; a machine that does much else takes a while to start a service."""


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Postgres]:
    """A server of these tests' own."""
    with running_postgres() as server:
        yield server


@contextlib.contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def _secrets(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.scalars(select(team_secrets.c.team)))


def test_a_transaction_in_which_the_store_went_away_wrote_nothing_and_the_next_one_works(stoppable: Postgres) -> None:
    database = Database(stoppable.migrated())
    with (
        pytest.raises(StoreTroubleError, match="The store cannot be used"),
        database.writing() as connection,
    ):
        connection.execute(insert(team_secrets).values(team="a", secret=b"s"))
        with stopped(stoppable):
            connection.execute(insert(team_secrets).values(team="b", secret=b"s"))
    assert _secrets(database) == []


def test_a_restart_that_nobody_noticed_costs_no_call(stoppable: Postgres) -> None:
    database = Database(stoppable.migrated())
    with database.reading(), database.reading():
        pass  # two connections wait in the pool
    with stopped(stoppable):
        pass
    with database.writing() as connection:
        connection.execute(insert(team_secrets).values(team="a", secret=b"s"))
        assert _secrets(database) == []
    assert _secrets(database) == ["a"]


def test_a_commit_to_a_store_that_went_away_says_so(stoppable: Postgres) -> None:
    database = Database(stoppable.migrated())
    with contextlib.ExitStack() as stack:
        with pytest.raises(StoreTroubleError), database.writing() as connection:
            connection.execute(insert(team_secrets).values(team="a", secret=b"s"))
            stack.enter_context(stopped(stoppable))
        with pytest.raises(StoreTroubleError, match="connection"):
            _secrets(database)
    assert _secrets(database) == []


def test_a_frozen_process_does_not_hold_what_it_has_locked_for_ever(stoppable: Postgres) -> None:
    database = Database(stoppable.migrated())
    with pytest.raises(StoreTroubleError, match="idle"), database.writing() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 100")
        database.lock_name(connection, "a")
        other = Database(database.url)
        with other.writing() as second:
            other.lock_name(second, "a")  # waits until the first one's session was ended
        connection.execute(select(team_secrets))
    assert _secrets(database) == []


@pytest.fixture
def service(stoppable: Postgres, tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """The URL, the token and the data root of a service process."""
    data, home, port = tmp_path / "data", tmp_path / "home", free_port()
    data.mkdir()
    environment = {**os.environ, DATABASE_URL_VARIABLE: stoppable.empty()}
    environment.pop(TOKEN_VARIABLE, None)
    command = [sys.executable, "-m", "airflow_batch_llm", "serve", f"--port={port}", f"--home={home}"]
    process = subprocess.Popen([*command, f"--data-root={data}"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _healthy(url), seconds=SOON, what="the service answers")
        yield url, (home / "token").read_text().strip(), data
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)


def _healthy(url: str) -> bool:
    with BatchClient(url) as client, contextlib.suppress(NoAnswerError):
        return client.health() is not None
    return False


def _table(data: Path, name: str, **more: object) -> BatchCreate:
    pq.write_table(pa.table({"a": ["x", "y"]}), data / f"{name}.parquet")
    dataset = {"source": f"{name}.parquet", "target": f"{name}-out.parquet"}
    return BatchCreate.model_validate(
        {"model": "m", "dataset": {**dataset, "messages": [{"role": "user", "content": "{a}"}]}, **more}
    )


def test_a_service_goes_on_with_all_of_its_parts_once_its_store_is_back(
    stoppable: Postgres, service: tuple[str, str, Path]
) -> None:
    url, token, data = service
    client = BatchClient(url, token)
    before = client.submit(_table(data, "before"))
    worker = AnsweringWorker(RunningService(None, None, token, client))  # type: ignore[arg-type]
    claimed = eventually(worker.claim, seconds=SOON, what="the chunk is claimed")
    claim, lines = claimed
    heart = _Beating(worker.link, _Kept(claim), claim.lease_seconds)
    with stopped(stoppable):
        for path in ("/v1/batches", "/healthz", f"/v1/batches/{before.id}"):
            refused = httpx.get(url + path, headers={"Authorization": f"Bearer {token}"})
            assert refused.status_code == 503
            assert "The store cannot be used" in refused.json()["error"]["message"]
            assert "Traceback" not in refused.text
        with pytest.raises(NoAnswerError):
            client.submit(_table(data, "refused"))
        with pytest.raises(NoAnswerError):
            worker.claim()
        assert heart.beat() is False
    assert heart.link.extend(claim, []).stop is False
    worker.link.commit(claim, [worker.store(claim, 0, lines)])
    late = client.submit(_table(data, "late", deadline=int(time.time()) + 2))
    after = client.submit(_table(data, "after"))
    eventually(
        lambda: client.get(late.id).status == "expired", seconds=SOON, what="the tidy thread ends the late batch"
    )
    eventually(worker.work, seconds=SOON, what="the planner goes on")
    eventually(lambda: client.get(after.id).status == "completed", seconds=SOON, what="the assembler goes on")
    assert [found.id for found in client.list().data] == [after.id, late.id, before.id]
    assert client.get(before.id).status == "completed"


class _Kept:
    """Something claimed, as the heartbeat knows it; it must not be told of an end."""

    def __init__(self, claim: object) -> None:
        self.claim = claim
