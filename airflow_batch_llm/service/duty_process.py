"""The child process that does the duties of one kind: ``python -m airflow_batch_llm.service.duty_process KIND``.

The settings come over standard input, for they may hold the store's password.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.duties import DutyRunner
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.store.batches import Batches
from airflow_batch_llm.store.chunks import Chunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.workers import Workers

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 0.2
"""How soon a new batch is noticed."""


def holder_of(pid: int) -> str:
    """How a duty process of this host names itself in the store."""
    return f"{socket.gethostname()}:{pid}"


def pid_of(holder: str) -> int | None:
    """The process that a holder's name means, if it is one of this host."""
    host, _, pid = holder.rpartition(":")
    return int(pid) if host == socket.gethostname() and pid.isdigit() else None


def dump_settings(settings: ServiceSettings) -> bytes:
    return json.dumps(asdict(settings), default=str).encode()


def load_settings(content: bytes) -> ServiceSettings:
    values = json.loads(content)
    return ServiceSettings(
        **values | {"home": Path(values["home"]), "data_roots": tuple(Path(root) for root in values["data_roots"])}
    )


def runner(kind: DutyKind, settings: ServiceSettings) -> DutyRunner:
    database = Database(settings.store_url)
    return DutyRunner(
        kind=kind,
        holder=holder_of(os.getpid()),
        settings=settings,
        duties=Duties(database),
        batches=Batches(database),
        chunks=Chunks(database),
        workers=Workers(database),
        storage=LocalStorage(settings.storage_root),
    )


def main() -> None:
    """Does duties until it is ended; dying at any moment is part of the design."""
    kind = DutyKind(sys.argv[1])
    settings = load_settings(sys.stdin.buffer.read())
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {kind} %(message)s")
    duty_runner = runner(kind, settings)
    while True:
        try:
            worked = duty_runner.run_once()
        except Exception:
            log.exception("a %s duty broke off; it is tried again when its lease ends", kind)
            worked = False
        if not worked:
            time.sleep(IDLE_SECONDS)


if __name__ == "__main__":
    main()
