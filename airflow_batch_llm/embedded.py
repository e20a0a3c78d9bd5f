"""Service and worker on one machine, as two child processes that are started again when they die."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.child_process import end_group, start_child
from airflow_batch_llm.settings import TOKEN_VARIABLE, EngineSettings, ServiceSettings

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.3
RESTART_SECONDS: Final = 1.0
WORKER_NAME: Final = "local"
"""The same at every start, so that a restarted worker takes its chunks back without waiting for their leases."""
WORKER_GRACE_SECONDS: Final = 40.0
SERVICE_GRACE_SECONDS: Final = 10.0


@dataclass
class Embedded:
    """The parts of ``batch-llm up``."""

    service: ServiceSettings
    engine: EngineSettings
    _over: threading.Event = field(default_factory=threading.Event)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self) -> None:
        """Keeps both processes running until SIGTERM or SIGINT; then the worker drains first."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._over.set())
        try:
            self._start("serve")
            while not self.service.token_path.exists() and not self._over.wait(LOOK_SECONDS):
                self._restart_dead()
            self._start("work")
            while not self._over.wait(LOOK_SECONDS):
                self._restart_dead()
        finally:
            self._stop("work", WORKER_GRACE_SECONDS)
            self._stop("serve", SERVICE_GRACE_SECONDS)

    def _restart_dead(self) -> None:
        for part, child in list(self._children.items()):
            if child.poll() is not None:
                log.warning("%s ended with code %d; starting it again", part, child.returncode)
                end_group(child, grace_seconds=0)
                if not self._over.wait(RESTART_SECONDS):
                    self._start(part)

    def _start(self, part: str) -> None:
        arguments = self._serve_arguments() if part == "serve" else self._work_arguments()
        environment = {}
        if part == "work" and self.service.token_path.exists():
            # Another service's token in the environment must not reach this one's worker.
            environment[TOKEN_VARIABLE] = self.service.token_path.read_text().strip()
        command = [sys.executable, "-m", "airflow_batch_llm", part, *arguments]
        self._children[part] = start_child(command, environment=environment)

    def _stop(self, part: str, grace_seconds: float) -> None:
        if part in self._children:
            end_group(self._children[part], grace_seconds=grace_seconds)

    def _serve_arguments(self) -> list[str]:
        roots = [argument for root in self.service.all_roots for argument in ("--data-root", root)]
        values = {
            "--home": self.service.home,
            "--port": self.service.port,
            "--gpu-hour-price": self.service.gpu_hour_price,
            "--api-input-price": self.service.api_input_price,
            "--api-output-price": self.service.api_output_price,
            "--currency": self.service.currency,
        }
        return [*roots, *(f"{name}={value}" for name, value in values.items() if value is not None)]

    def _work_arguments(self) -> list[str]:
        values = {
            "--home": str(self.service.home),
            "--url": f"http://{self.service.host}:{self.service.port}",
            "--name": WORKER_NAME,
            "--model": self.engine.model,
            "--served-model-name": self.engine.served_model_name,
            "--vllm": shlex.join(self.engine.command),
            "--engine-args": shlex.join(self.engine.arguments),
            "--max-num-seqs": str(self.engine.max_num_seqs),
        }
        return [f"{name}={value}" for name, value in values.items()]
