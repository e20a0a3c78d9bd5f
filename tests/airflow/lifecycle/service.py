"""The service that the tasks of these tests submit to: it can be away, and comes back where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from pool import ROOT, free_port

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.settings import TOKEN_VARIABLE
from tests.airflow.lifecycle.task import eventually

TOKEN: Final = "bl-lifecycle-of-the-tests"


class Service:
    """`batch-llm serve` below ``folder``, without a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_root = folder / "data"
        self.data_root.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "airflow_batch_llm", "serve", "--home", str(self.folder / "service")]
        command += ["--data-root", str(self.data_root), "--port", str(self.port)]
        environment = {**os.environ, TOKEN_VARIABLE: TOKEN, "PYTHONPATH": str(ROOT)}
        log = self.folder / "service.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        with BatchClient(self.url, TOKEN) as client:
            eventually(lambda: _answers(client), f"the service answers; see {log}")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def _answers(client: BatchClient) -> bool:
    try:
        return client.health() is not None
    except NoAnswerError:
        return False
