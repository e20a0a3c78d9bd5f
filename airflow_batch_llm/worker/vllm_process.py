"""The ``vllm serve`` that a worker starts, on a unix socket, and ends with itself.

Any exit that nobody asked for is a crash, also one with code 0: that is how vLLM ends when its engine core dies.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from airflow_batch_llm.child_process import end_group, start_child
from airflow_batch_llm.errors import EngineStartError
from airflow_batch_llm.settings import EngineSettings
from airflow_batch_llm.worker.engine import Engine

log = logging.getLogger(__name__)

READY_POLL_SECONDS: Final = 0.25
STOP_SECONDS: Final = 10.0
LOG_TAIL_LINES: Final = 15

_ENVIRONMENT: Final[Mapping[str, str]] = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass
class VllmProcess:
    """One ``vllm serve`` at a time; after a crash it may be started again."""

    settings: EngineSettings
    socket: Path
    log_path: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Starts the process. Call it from a thread that lives as long as the engine should: the main one."""
        self.socket.unlink(missing_ok=True)  # one left by a dead server makes the next one fail
        with self.log_path.open("ab") as output:
            self._child = start_child(self._command(), environment=_ENVIRONMENT, output=output)
        log.info("started vllm serve, pid %d, log %s", self._child.pid, self.log_path)

    def exit_code(self) -> int | None:
        """The code that the process ended with; None while it runs."""
        return self._child.poll() if self._child else None

    async def wait_ready(self, engine: Engine) -> None:
        """Returns once the engine serves its model. Raises :class:`EngineStartError` with the end of its log."""
        give_up_at = time.monotonic() + self.settings.start_timeout
        while not await engine.healthy():
            code = self.exit_code()
            if code is not None:
                raise self._start_error(f"ended with code {code} before it was ready")
            if time.monotonic() > give_up_at:
                raise self._start_error(f"was not ready after {self.settings.start_timeout:,.0f} s")
            await asyncio.sleep(READY_POLL_SECONDS)

    def stop(self) -> None:
        """Ends the process and everything that it started."""
        if self._child is not None:
            code = end_group(self._child, grace_seconds=STOP_SECONDS)
            log.info("vllm serve, pid %d, ended with code %d", self._child.pid, code)

    def _command(self) -> list[str]:
        settings = self.settings
        return [
            *settings.command,
            "serve",
            settings.model,
            "--uds",
            str(self.socket),
            "--served-model-name",
            settings.served_model_name,
            "--max-num-seqs",
            str(settings.max_num_seqs),
            "--disable-uvicorn-access-log",
            *settings.arguments,
        ]

    def _start_error(self, what: str) -> EngineStartError:
        lines = self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        end = "\n".join(lines)
        return EngineStartError(f"`{' '.join(self._command()[:3])}` {what}. The end of {self.log_path}:\n{end}")
