"""The child process that does the duties of one kind: ``python -m airflow_batch_llm.service.duty_process KIND PARENT``.

PARENT is the name of the service process. The settings come over standard input, for they may hold the store's
password.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Final

from airflow_batch_llm.child_process import child_name, process_name
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.duties import DutyRunner
from airflow_batch_llm.service.duty_context import DutyContext
from airflow_batch_llm.service.scratch import scratch_folder
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.database import StoreTroubleError

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 0.5
"""How soon a new batch is noticed."""


def runner(kind: DutyKind, settings: ServiceSettings, holder: str | None = None) -> DutyRunner:
    return DutyRunner(kind, holder or process_name(), DutyContext.open(settings))


def main() -> None:
    """Does duties until it is ended; dying at any moment is part of the design."""
    kind, service = DutyKind(sys.argv[1]), sys.argv[2]
    settings = ServiceSettings.from_json(sys.stdin.buffer.read())
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {kind} %(message)s")
    with scratch_folder(settings.scratch_root):
        _work(runner(kind, settings, child_name(service, kind, os.getpid())), kind)


def _work(duty_runner: DutyRunner, kind: DutyKind) -> None:
    while True:
        try:
            worked = duty_runner.run_once()
        except StoreTroubleError as error:
            log.warning("a %s duty waits for the store: %s", kind, error)
            worked = False
        except Exception:
            log.exception("a %s duty broke off; it is tried again when its lease ends", kind)
            worked = False
        if not worked:
            time.sleep(IDLE_SECONDS)


if __name__ == "__main__":
    main()
