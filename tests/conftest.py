"""What the tests stand on: real stores, a real service over real HTTP, a real pool with real vLLM."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.duty_process import runner
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import TOKEN_VARIABLE, ServiceSettings

ROOT = Path(__file__).resolve().parent.parent
VLLM_ENVIRONMENT = Path(os.environ.get("VLLM_ENVIRONMENT", ROOT / ".venv-vllm"))
TINY_MODEL = VLLM_ENVIRONMENT / "tiny-model"
PACKAGES = ROOT / "dags_examples" / "data" / "packages.parquet"

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
ENGINE_ARGUMENTS = [
    "--dtype=float32",
    "--max-model-len=1024",
    "--enforce-eager",
    "--kv-cache-memory-bytes=64M",
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens=8192",
    '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}',
]


def eventually(check: Callable[[], Any], *, seconds: float = 30.0, what: str = "") -> Any:
    """Asks until the answer is true, and gives it; fails with the last answer after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            pytest.fail(f"Not within {seconds:.0f} s: {what or check}; last answer: {answer!r}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class RunningService:
    """A service over real HTTP in this process. Its duties run when a test says so, in this process too."""

    settings: ServiceSettings
    state: ServiceState
    token: str
    client: BatchClient

    @property
    def url(self) -> str:
        return self.client.url

    @property
    def data_root(self) -> Path:
        return self.settings.data_roots[0]

    def plan(self) -> bool:
        return runner(DutyKind.PLAN, self.settings).run_once()

    def assemble(self) -> bool:
        return runner(DutyKind.ASSEMBLE, self.settings).run_once()


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    data = tmp_path / "data"
    data.mkdir()
    return ServiceSettings(home=tmp_path / "home", data_roots=(data,), port=free_port(), lease_seconds=5.0)


@pytest.fixture
def state(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceState]:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    opened = ServiceState.open(settings)
    yield opened
    opened.database.close()


@pytest.fixture
def service(state: ServiceState) -> Iterator[RunningService]:
    settings = state.settings
    server = uvicorn.Server(
        uvicorn.Config(create_app(state), host="127.0.0.1", port=settings.port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    token = settings.token_path.read_text().strip()
    with BatchClient(f"http://127.0.0.1:{settings.port}", token) as client:
        yield RunningService(settings, state, token, client)
    server.should_exit = True
    thread.join()


@dataclass
class Pool:
    """``batch-llm up`` on real vLLM, as a user starts it."""

    url: str
    token: str
    home: Path
    data_root: Path
    model: str
    process: subprocess.Popen[bytes]

    def client(self) -> BatchClient:
        return BatchClient(self.url, self.token)


@contextlib.contextmanager
def running_pool(folder: Path, *, engine_arguments: list[str] | None = None, max_num_seqs: int = 64) -> Iterator[Pool]:
    """Starts a pool in ``folder`` and ends it with all that it started."""
    home, data = folder / "home", folder / "data"
    data.mkdir(parents=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "airflow_batch_llm", "up"),
        *("--home", str(home), "--data-root", str(data), "--port", str(port)),
        *("--model", str(TINY_MODEL), "--served-model-name", "tiny"),
        *("--vllm", str(VLLM_ENVIRONMENT / "bin" / "vllm"), "--max-num-seqs", str(max_num_seqs)),
        *("--engine-args", shlex.join([*ENGINE_ARGUMENTS, *(engine_arguments or [])])),
    ]
    environment = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE,)}
    with (folder / "pool.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**environment, **ENGINE_ENVIRONMENT}
        )
    try:
        eventually((home / "token").exists, seconds=60, what="the service makes its token")
        token = (home / "token").read_text().strip()
        pool = Pool(f"http://127.0.0.1:{port}", token, home, data, "tiny", process)
        with pool.client() as client:
            eventually(lambda: _models(client), seconds=300, what=f"the worker registers; see {folder / 'pool.log'}")
        yield pool
    finally:
        process.terminate()
        process.wait(60)


def _models(client: BatchClient) -> list[Any]:
    try:
        return client.models().data
    except Exception:  # noqa: BLE001 (the service is not there yet)
        return []


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool for all tests that only use it. A test that kills something starts its own."""
    assert TINY_MODEL.is_dir(), f"There is no {TINY_MODEL}: run `make test`, which makes it."
    with running_pool(tmp_path_factory.mktemp("pool")) as started:
        yield started
