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
from airflow_batch_llm.worker.engine_log import why

log = logging.getLogger(__name__)

READY_POLL_SECONDS: Final = 0.25
STOP_SECONDS: Final = 10.0
LONGEST_SOCKET: Final = 107
"""Bytes in the path of a unix socket: Linux has 108 for it, with a zero at the end."""

_ENVIRONMENT: Final[Mapping[str, str]] = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass
class VllmProcess:
    """One ``vllm serve`` at a time; after a crash it may be started again."""

    settings: EngineSettings
    socket: Path
    log_path: Path
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _logged_before: int = 0
    """How long the log was at the last start: what stands before tells of earlier ones."""

    def start(self) -> None:
        """Starts the process. Call it from a thread that lives as long as the engine should: the main one.

        Raises :class:`EngineStartError` where there is nothing to start.
        """
        self._check_socket()
        try:
            self.socket.unlink(missing_ok=True)  # one left by a dead server makes the next one fail
            with self.log_path.open("ab") as output:
                self._logged_before = output.tell()
                self._child = start_child(self._command(), environment=_ENVIRONMENT, output=output)
        except (OSError, ValueError) as error:
            raise EngineStartError(
                f"`{self._shown()}` cannot be started: {error}. Nothing runs. Look at the worker's --vllm and --home."
            ) from error
        log.info("started vllm serve, pid %d, log %s", self._child.pid, self.log_path)

    def exit_code(self) -> int | None:
        """The code that the process ended with; None while it runs."""
        return self._child.poll() if self._child else None

    async def wait_ready(self, engine: Engine) -> None:
        """Returns once the engine serves its model. Raises :class:`EngineStartError` with what its log says."""
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

    def _check_socket(self) -> None:
        size = len(bytes(self.socket))
        if size > LONGEST_SOCKET:
            raise EngineStartError(
                f"The engine's socket would be {self.socket}, which has {size} bytes, and Linux takes at most "
                f"{LONGEST_SOCKET}. Nothing was started. Give the worker a shorter --home or --name."
            )

    def _shown(self) -> str:
        return " ".join([*self.settings.command, "serve", self.settings.model])

    def _start_error(self, what: str) -> EngineStartError:
        return EngineStartError(f"`{self._shown()}` {what}. {why(self.log_path, since=self._logged_before)}")
