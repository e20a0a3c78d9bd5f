"""`airflow dags test`, as people try a Dag at their desk: there is no triggerer, and each trigger runs in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.airflow.lifecycle.harness import WHOLE_ONLY
from tests.service.answering import AnsweringWorker

pytestmark = pytest.mark.airflow

DAG = """
from airflow.sdk import DAG

from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.sensors.batch_llm import BatchLLMSensor

ASKED = {"source": "reviews.parquet", "model": "m", "prompt": "{text}?"}

with DAG("at_the_desk", schedule=None):
    waits = BatchLLMOperator(task_id="waits", target="waited.parquet", inline_wait=0.0, poll_interval=0.2, **ASKED)
    hands = BatchLLMOperator(
        task_id="hands", target="handed.parquet", wait_for_completion=False, reuse="never", **ASKED
    )
    waits >> hands >> BatchLLMSensor(task_id="senses", batch_id=hands.output, poke_interval=0.2)
"""


@WHOLE_ONLY
def test_operator_and_sensor_defer_and_come_back(connected: Any, tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "at_the_desk.py").write_text(DAG)
    connection = {"conn_type": "batch_llm", "host": connected.url, "password": connected.token}
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW_CONN_BATCH_LLM_DEFAULT": json.dumps(connection),
    }
    airflow = [sys.executable, "-m", "airflow"]
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        subprocess.run([*airflow, *command], env=environment, check=True, capture_output=True)
    log = tmp_path / "test.log"
    with log.open("wb") as output:
        trying = subprocess.Popen(
            [*airflow, "dags", "test", "at_the_desk"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    worker, deferrals = AnsweringWorker(connected), 0
    while trying.poll() is None:
        time.sleep(0.2)
        if log.read_text().count("Pausing task as DEFERRED") > deferrals:  # else it may find its batch done already
            deferrals += 1
            connected.plan()
            worker.work()
            connected.assemble()
    assert trying.returncode == 0, log.read_text()[-3_000:]
    for target in ("waited", "handed"):
        table = pq.read_table(connected.data_root / f"{target}.parquet")
        assert table["llm_output"].to_pylist() == ["answer 0", "answer 1"]
    said = log.read_text()
    assert "state=success" in said
    assert said.count("[DAG TEST] Trigger completed") == deferrals == 2
