"""How much memory the parts of a running service and its workers take, from the outside."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Self

import psutil


@dataclass
class Memory:
    """The highest sum of resident memory that each part of a process tree reached, looked at five times a second."""

    root: int
    peaks: dict[str, int] = field(default_factory=dict)
    """Bytes by part; reset it to begin anew."""
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            root = psutil.Process(self.root)
            sums: dict[str, int] = {}
            for process in [root, *root.children(recursive=True)]:
                try:
                    part, size = _part_of(process.cmdline()), process.memory_info().rss
                except psutil.Error:
                    continue
                sums[part] = sums.get(part, 0) + size
            sums["service, all of it"] = sum(size for part, size in sums.items() if part.startswith("service"))
            for part, size in sums.items():
                self.peaks[part] = max(self.peaks.get(part, 0), size)


def _part_of(command: list[str]) -> str:
    words = " ".join(command)
    if "duty_process" in words:
        return f"service, {command[-1]}"
    if "airflow_batch_llm serve" in words:
        return "service, API"
    if "airflow_batch_llm up" in words:
        return "supervisor"
    return "worker" if "airflow_batch_llm work" in words else "engine"
