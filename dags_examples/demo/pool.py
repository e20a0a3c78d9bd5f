"""A pool on a very small model, on a machine without a GPU: how the demo and the tests start `batch-llm up`.

The demo serves the trained `SECTION_MODEL`; most tests take the random `TINY_MODEL`, whose answers differ more.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.settings import TOKEN_FILE, TOKEN_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[2]
VLLM_ENVIRONMENT: Final = Path(os.environ.get("VLLM_ENVIRONMENT", ROOT / ".venv-vllm"))
VLLM: Final = VLLM_ENVIRONMENT / "bin" / "vllm"
TINY_MODEL: Final = VLLM_ENVIRONMENT / "tiny-model"
MODEL_NAME: Final = "tiny"
SECTION_MODEL: Final = Path(__file__).with_name("section_model")
SECTION_MODEL_NAME: Final = "sections"

ENGINE_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # a tiny model is faster on one thread
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # fewer processes start sooner
}
ENGINE_ARGUMENTS: Final[Sequence[str]] = (
    "--dtype=float32",
    "--max-model-len=1024",
    "--enforce-eager",
    "--kv-cache-memory-bytes=64M",
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens=8192",
    '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}',
)
START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Pool:
    """A running ``batch-llm up``: where it is, and how to call it."""

    url: str
    token: str
    home: Path
    data_root: Path
    log: Path
    process: subprocess.Popen[bytes]
    model: str = MODEL_NAME

    def client(self) -> BatchClient:
        return BatchClient(self.url, self.token)


@contextmanager
def embedding_worker(pool: Pool, folder: Path) -> Iterator[str]:
    """A second worker of the pool, whose engine turns texts into vectors; gives what its model is called."""
    name = f"{MODEL_NAME}-embed"
    command = [
        *(sys.executable, "-m", "airflow_batch_llm", "work", "--url", pool.url, "--home", str(folder)),
        *("--name", "embeddings", "--model", str(TINY_MODEL), "--served-model-name", name),
        *("--vllm", str(VLLM), "--max-num-seqs", "64"),
        *("--engine-args", shlex.join([*ENGINE_ARGUMENTS, "--runner", "pooling", "--convert", "embed"])),
    ]
    environment = {**os.environ, **ENGINE_ENVIRONMENT, TOKEN_VARIABLE: pool.token}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield name
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running_pool(
    folder: Path,
    *,
    model: Path = TINY_MODEL,
    name: str = MODEL_NAME,
    engine_arguments: Sequence[str] = (),
    max_num_seqs: int = 64,
) -> Iterator[Pool]:
    """Starts a pool whose data root is ``folder/data``, and ends it with all that it started."""
    home, data, log = folder / "home", folder / "data", folder / "pool.log"
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "airflow_batch_llm", "up"),
        *("--home", str(home), "--data-root", str(data), "--port", str(port)),
        *("--model", str(model), "--served-model-name", name),
        *("--vllm", str(VLLM), "--max-num-seqs", str(max_num_seqs)),
        *("--engine-args", shlex.join([*ENGINE_ARGUMENTS, *engine_arguments])),
    ]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**environment, **ENGINE_ENVIRONMENT}
        )
    try:
        token = _token(home / TOKEN_FILE, process, log)
        yield Pool(f"http://127.0.0.1:{port}", token, home, data, log, process, name)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def wait_for_worker(pool: Pool) -> None:
    """Returns once a worker serves the model, which is when its engine has started."""
    deadline = time.monotonic() + START_SECONDS
    with pool.client() as client:
        while not _serves(client):
            if time.monotonic() > deadline or pool.process.poll() is not None:
                raise SystemExit(f"No worker registered within {START_SECONDS:.0f} s. See {pool.log}.")
            time.sleep(0.25)


def _token(path: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while not (path.exists() and path.read_text().strip()):
        if time.monotonic() > deadline or process.poll() is not None:
            raise SystemExit(f"The service did not start. See {log}.")
        time.sleep(0.1)
    return path.read_text().strip()


def _serves(client: BatchClient) -> bool:
    try:
        return bool(client.models().data)
    except NoAnswerError:
        return False
