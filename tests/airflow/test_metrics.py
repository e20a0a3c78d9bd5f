"""What a batch was, as metrics that arrive at a statsd over UDP, by Airflow's own configuration."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils
from conftest import task_instance
from test_waiting import batch

from airflow_batch_llm.hooks.metrics import send_metrics
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Progress

pytestmark = pytest.mark.airflow

log = logging.getLogger("test")
TAGS = {"dag_id=reviews", "task_id=classify", "model=tiny"}


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that Airflow sends its metrics to, as it does in a worker whose ``[metrics]`` name it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(10)
        host, port = listening.getsockname()
        options = {"ON": "True", "HOST": host, "PORT": str(port), "PREFIX": "airflow", "INFLUXDB_ENABLED": "True"}
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__STATSD_{name}", value)
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
        yield listening
    monkeypatch.undo()
    stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)


def received(listening: socket.socket, count: int) -> dict[str, tuple[str, set[str]]]:
    """The next metrics that come in, each with its value and tags."""
    found = {}
    for _ in range(count):
        named, _, value = listening.recv(4096).decode().partition(":")
        name, *tags = named.split(",")
        found[name] = value, set(tags)
    return found


def ended(**changes: Any) -> Any:
    progress = Progress(rows_total=10, rows_done=10, rows_failed=3, rows_reused=2, prompt_tokens=70, gpu_seconds=1.5)
    return batch(failed=3, model="tiny", progress=progress, **{"completed_at": 61, **changes})


def test_a_batch_that_ended_is_counted_with_its_rows_tokens_and_time(statsd: socket.socket) -> None:
    send_metrics(ended(), task_instance(), log)
    found = received(statsd, 8)
    assert {name: value for name, (value, _) in found.items()} == {
        "airflow.batch_llm.batches.completed": "1|c",
        "airflow.batch_llm.rows.total": "10|c",
        "airflow.batch_llm.rows.answered": "7|c",
        "airflow.batch_llm.rows.failed": "3|c",
        "airflow.batch_llm.rows.reused": "2|c",
        "airflow.batch_llm.tokens.prompt": "70|c",
        "airflow.batch_llm.batches.duration": "60000.000000|ms",
        "airflow.batch_llm.batches.gpu_time": "1500.000000|ms",
    }
    assert all(tags == TAGS for _, tags in found.values())


def test_a_batch_that_failed_is_counted_as_that(statsd: socket.socket) -> None:
    failed = batch(BatchStatus.FAILED, done=0, manifest=None, progress=Progress(), failed_at=4, model="tiny")
    send_metrics(failed.model_copy(update={"request_counts": type(failed.request_counts)()}), task_instance(), log)
    found = received(statsd, 2)
    assert found["airflow.batch_llm.batches.failed"] == ("1|c", TAGS)
    assert found["airflow.batch_llm.batches.duration"][0] == "3000.000000|ms"


def test_the_tags_of_airflows_own_metrics_are_kept(statsd: socket.socket) -> None:
    ti = task_instance(stats_tags={"dag_id": "reviews", "task_id": "classify", "team_name": "search"})
    send_metrics(ended(), ti, log)
    assert received(statsd, 1)["airflow.batch_llm.batches.completed"][1] == TAGS | {"team_name=search"}


def test_metrics_that_cannot_be_sent_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    send_metrics(ended(), object(), log)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
