"""The real processes of one schedule: a service, an engine and workers, to be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import psutil
from pool import ENGINE_ARGUMENTS, ENGINE_ENVIRONMENT, MODEL_NAME, ROOT, TINY_MODEL, VLLM, free_port

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.settings import TOKEN_VARIABLE
from tests.chaos.fault_proxy import FaultProxy

EngineKind = Literal["fake", "vllm"]
TOKEN: Final = "bl-chaos-of-the-tests"
SEQUENCES: Final = 8
"""Rows that an engine works on at once: small, so that a batch takes some seconds."""
START_SECONDS: Final = 240.0


@dataclass
class Parts:
    """Everything that runs. What dies by a schedule is started again by it."""

    folder: Path
    engine: EngineKind
    workers: int = 2
    delay: float = 0.1
    sequences: int = SEQUENCES
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.data = self.folder / "data"
        self.home = self.folder / "home"
        self.data.mkdir()
        self.notes = self.folder / "asked.txt"
        self.notes.touch()
        self.port, self.engine_port = free_port(), free_port()
        self.proxy = FaultProxy(self.port)
        self.client = BatchClient(f"http://127.0.0.1:{self.port}", TOKEN)
        self.model = "fake" if self.engine == "fake" else MODEL_NAME
        self.proxy.__enter__()
        for name in self.names:
            self.start(name)
        try:
            self.wait_for_workers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in reversed(self.names):
            self.kill(name)
        self.proxy.__exit__(None, None, None)
        self.client.close()

    @property
    def names(self) -> list[str]:
        """All parts. A worker with vLLM has its own engine."""
        engine = ["engine"] if self.engine == "fake" else []
        return ["service", *engine, *(f"w{number}" for number in range(self.workers))]

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", *self._command(name)]
        environment = {**os.environ, **ENGINE_ENVIRONMENT, TOKEN_VARIABLE: TOKEN, "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{name}.log").open("ab") as output:
            self.running[name] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def kill(self, name: str) -> None:
        """SIGKILL, and then the end of what it leaves: its children get a signal from the kernel."""
        process = self.running[name]
        children = self.children(name)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        psutil.wait_procs(children, 15)

    def again(self, name: str) -> None:
        """Kills a part and starts it again."""
        self.kill(name)
        self.start(name)

    def children(self, name: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.running[name].pid).children(recursive=True)
        return []

    def duty(self, kind: str) -> psutil.Process | None:
        """The service's child that does the duties of one kind."""
        for child in self.children("service"):
            with contextlib.suppress(psutil.Error):
                if kind in child.cmdline():
                    return child
        return None

    def own_engine(self, name: str) -> psutil.Process | None:
        """The vLLM that a worker started."""
        for child in self.children(name):
            with contextlib.suppress(psutil.Error):
                if "--uds" in child.cmdline():
                    return child
        return None

    def restart_dead(self) -> None:
        """Starts again what ended: a worker ends by itself where its engine does not come up."""
        for name, process in self.running.items():
            if process.poll() is not None:
                self.start(name)

    def wait_for_workers(self) -> None:
        until(lambda: [m for m in self.client.models().data if m.workers == self.workers], START_SECONDS, "the workers")

    def asked(self, batch_id: str) -> Counter[int]:
        """How often the engines were asked each row of a batch."""
        if self.engine == "fake":
            text = self.notes.read_text()
            found = re.findall(rf"^{batch_id}-(\d+)$", text, re.MULTILINE)
        else:
            logs = (self.folder / "workers").glob("*/workers/*/engine.log")
            text = "".join(path.read_text(errors="replace") for path in logs)
            found = re.findall(rf"Received request chatcmpl-{batch_id}-(\d+)", text)
        return Counter(int(row) for row in found)

    def _command(self, name: str) -> list[str]:
        if name == "service":
            places = ["--home", str(self.home), "--data", str(self.data), "--port", str(self.port)]
            return ["tests.chaos.service_process", *places]
        if name == "engine":
            notes = ["--notes", str(self.notes), "--delay", str(self.delay)]
            return ["tests.chaos.engine_process", "--port", str(self.engine_port), *notes]
        work = ["airflow_batch_llm", "work", "--url", f"http://127.0.0.1:{self.proxy.port}", "--name", name]
        work += ["--home", str(self.folder / "workers" / name), "--max-num-seqs", str(self.sequences)]
        if self.engine == "fake":
            return [*work, "--model", self.model, "--endpoint", f"http://127.0.0.1:{self.engine_port}"]
        work += ["--model", str(TINY_MODEL), "--served-model-name", self.model, "--vllm", str(VLLM)]
        return [*work, "--engine-args", shlex.join([*ENGINE_ARGUMENTS, "--enable-log-requests"])]


def until(check: Callable[[], Any], seconds: float, what: str) -> Any:
    """Asks until the answer is true, and gives it; a service that is away is asked again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(NoAnswerError):
            if answer := check():
                return answer
        time.sleep(0.1)
    raise TimeoutError(f"Not within {seconds:.0f} s: {what}")
