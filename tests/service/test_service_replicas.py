"""Several services on one store: any of them answers any call, and one that is killed leaves nothing undone."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import free_port
from sqlalchemy import func, select

from airflow_batch_llm.client.async_client import AsyncBatchClient
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.settings import DATABASE_URL_VARIABLE, TOKEN_VARIABLE
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import duties, tokens
from airflow_batch_llm.wire import BatchCreate
from tests.conftest import RunningService, eventually
from tests.postgres import Postgres
from tests.service.answering import AnsweringWorker

ROWS = 40
SOON = 120
"""Seconds; a machine that does much else takes half a minute to start three services."""


def table(folder: Path, name: str, rows: int = ROWS) -> BatchCreate:
    pq.write_table(pa.table({"a": [f"{name} {number}" for number in range(rows)]}), folder / f"{name}.parquet")
    dataset: Any = {"source": f"{name}.parquet", "target": f"{name}-out.parquet"}
    dataset["messages"] = [{"role": "user", "content": "{a}"}]
    return BatchCreate(model="m", dataset=dataset)


# One address that does not answer


@dataclass
class Away:
    """A server that reads a request and then breaks off, or says ``status``."""

    status: int | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and host of each request."""
    url: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[Away]:
        away = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                away.asked.append((self.path, self.headers["Host"]))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if away.status is None:
                    self.close_connection = True
                    return
                self.send_response(away.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815 (the library's name)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url = f"http://127.0.0.1:{server.server_port}/behind/a/proxy"
            yield self
            server.shutdown()


@pytest.fixture(autouse=True)
def first_address_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.randrange", lambda count: 0)


@pytest.mark.parametrize("extra", ["", "/", "/v1"])
def test_where_nobody_listens_the_next_address_gets_every_call(service: RunningService, extra: str) -> None:
    create = table(service.data_root, "t")
    with BatchClient(f"http://127.0.0.1:{free_port()}, {service.url}{extra}", service.token) as client:
        batch = client.submit(create)  # without a key: nobody can have got it
        assert client.get(batch.id).id == batch.id
        assert client.upload_bytes("f.jsonl", b"{}").bytes == 2


@pytest.mark.parametrize("status", [None, 502, 503])
def test_only_what_may_be_said_twice_goes_on_where_an_address_may_have_heard_it(
    service: RunningService, status: int | None
) -> None:
    create = table(service.data_root, "t")
    with Away(status).running() as away:
        with BatchClient(f"{away.url},{service.url}", service.token) as client, pytest.raises(NoAnswerError):
            client.submit(create)
        assert service.client.list().data == []
        with BatchClient(f"{away.url},{service.url}", service.token) as client:
            batch = client.submit(create, idempotency_key="k")
            assert client.submit(create, idempotency_key="k").id == batch.id
        assert [path for path, _ in away.asked] == ["/behind/a/proxy/v1/batches"] * 2
        assert {f"http://{host}/behind/a/proxy" for _, host in away.asked} == {away.url}
    assert [found.id for found in service.client.list().data] == [batch.id]


def test_an_address_that_refuses_is_believed(service: RunningService) -> None:
    with Away(404).running() as away, BatchClient(f"{away.url},{service.url}", service.token) as client:
        with pytest.raises(NoAnswerError, match="404"):
            client.list()
        assert len(away.asked) == 1


def test_a_call_that_goes_on_is_said_to_the_address_that_gets_it() -> None:
    with (
        Away(404).running() as away,
        BatchClient(f"http://127.0.0.1:{free_port()}/another/path,{away.url}") as client,
        pytest.raises(NoAnswerError, match="404"),
    ):
        client.find("a key")
    assert [path for path, _ in away.asked] == ["/behind/a/proxy/v1/batches?key=a+key&limit=1"]
    assert {f"http://{host}/behind/a/proxy" for _, host in away.asked} == {away.url}


def test_where_no_address_answers_all_are_named() -> None:
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with BatchClient(",".join(dead)) as client, pytest.raises(NoAnswerError, match=f"{dead[0]},{dead[1]}"):
        client.list()


async def test_the_async_client_goes_on_to_the_next_address(service: RunningService) -> None:
    batch = service.client.submit(table(service.data_root, "t"))
    for status in (None, 503):
        with Away(status).running() as away:
            async with AsyncBatchClient(f"{away.url},{service.url}", service.token) as client:
                assert (await client.get(batch.id)).id == batch.id
                assert (await client.cancel(batch.id)).status == "cancelled"
            assert len(away.asked) == 1


def test_a_worker_goes_on_to_the_next_address(service: RunningService) -> None:
    service.client.submit(table(service.data_root, "t", rows=4))
    assert service.plan()
    with Away(503).running() as away:
        several = RunningService(
            service.settings, service.state, service.token, BatchClient(f"{away.url},{service.url}")
        )
        assert AnsweringWorker(several).work() == 4
        assert len(away.asked) == 1


# Three services


@dataclass
class Replica:
    url: str
    process: subprocess.Popen[bytes]

    def healthy(self) -> bool:
        assert self.process.poll() is None, "A replica ended at its start."
        with BatchClient(self.url) as client, contextlib.suppress(NoAnswerError):
            return client.health() is not None
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Replicas:
    database: Database
    data: Path
    token: str
    all: list[Replica]

    @property
    def client(self) -> BatchClient:
        return BatchClient(self.url, self.token)

    @property
    def url(self) -> str:
        return ",".join(replica.url for replica in self.all)


@pytest.fixture
def replicas(tmp_path: Path, postgres_server: Postgres) -> Iterator[Replicas]:
    """Three services that start at once on a database with nothing in it, over one directory."""
    (tmp_path / "data").mkdir()
    url = postgres_server.empty()
    environment = {**os.environ, DATABASE_URL_VARIABLE: url}
    environment.pop(TOKEN_VARIABLE, None)
    started = []
    for _ in range(3):
        port = free_port()
        command = [sys.executable, "-m", "airflow_batch_llm", "serve", f"--port={port}", f"--home={tmp_path / 'home'}"]
        process = subprocess.Popen([*command, f"--data-root={tmp_path / 'data'}"], env=environment)
        started.append(Replica(f"http://127.0.0.1:{port}", process))
    try:
        eventually(lambda: all(replica.healthy() for replica in started), seconds=SOON, what="three services answer")
        database = Database(url)
        yield Replicas(database, tmp_path / "data", (tmp_path / "home" / "token").read_text().strip(), started)
        database.close()
    finally:
        for replica in started:
            replica.process.send_signal(signal.SIGTERM)
        for replica in started:
            replica.process.wait(20)


def _targets(replicas: Replicas, names: list[str]) -> list[list[str]]:
    return [pq.read_table(replicas.data / f"{name}-out.parquet").column("a").to_pylist() for name in names]


def test_three_services_that_start_at_once_are_one_and_do_without_the_one_that_is_killed(replicas: Replicas) -> None:
    with replicas.database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(tokens)) == 1
    _check_a_change_is_noticed_elsewhere(replicas)

    names = [f"t{number}" for number in range(6)]
    client = replicas.client
    batches = [client.submit(table(replicas.data, name), idempotency_key=name) for name in names]
    worker = AnsweringWorker(RunningService(None, None, replicas.token, client))  # type: ignore[arg-type]
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            worker.work()
            over.wait(0.05)

    working = threading.Thread(target=work)
    working.start()
    eventually(lambda: worker.asked, seconds=SOON, what="the first rows are answered")
    replicas.all[0].kill()
    again = client.submit(table(replicas.data, "late"), idempotency_key="late")
    ended = eventually(lambda: _ended(client, [*batches, again]), seconds=SOON, what="all batches end")
    over.set()
    working.join()
    assert ended == ["completed"] * 7
    names.append("late")
    assert _targets(replicas, names) == [[f"{name} {number}" for number in range(ROWS)] for name in names]
    assert len(worker.asked) == 7 * ROWS
    assert eventually(lambda: _told(replicas), seconds=SOON, what="every end is told") == 8


def _told(replicas: Replicas) -> int:
    query = select(func.count()).select_from(duties).where(duties.c.kind == "notify", duties.c.done)
    with replicas.database.reading() as connection:
        told = connection.scalar(query) or 0
    return told if told >= 8 else 0


def _ended(client: BatchClient, batches: list[Any]) -> list[str] | None:
    found = [client.get(batch.id).status for batch in batches]
    return [str(status) for status in found] if all(status.ended for status in found) else None


def _check_a_change_is_noticed_elsewhere(replicas: Replicas) -> None:
    one, other = (BatchClient(replica.url, replicas.token) for replica in replicas.all[1:])
    batch = one.submit(table(replicas.data, "cancelled"))
    answer = other._http.post("/v1/batches/watch", json={"batches": {batch.id: None}})
    version = answer.json()["changed"][0]["version"]
    noticed: list[tuple[float, Any]] = []

    def watch() -> None:
        body = {"batches": {batch.id: version}, "wait": 20, "changes": "status"}
        told = other._http.post("/v1/batches/watch", json=body, timeout=30).json()
        noticed.append((time.monotonic(), told["changed"][0]["batch"]["status"]))

    waiting = threading.Thread(target=watch)
    waiting.start()
    changed = time.monotonic()
    one.cancel(batch.id)
    waiting.join()
    at, _ = noticed[0]
    assert at - changed < 3.0
    eventually(lambda: other.get(batch.id).status.ended, seconds=SOON, what="the cancelled batch ends")
