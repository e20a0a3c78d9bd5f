"""Keeps the service's duties going: processes for those that work, threads for those that only wait."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Final

from airflow_batch_llm.child_process import child_name, is_known_dead, process_name, start_child
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service.cleaner import Cleaner
from airflow_batch_llm.service.notifier import Notifier
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.life import BatchLife
from airflow_batch_llm.store.watching import Watching

log = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
TIDY_SECONDS: Final = 2.0
NOTIFY_SECONDS: Final = 1.0
"""How soon the end of a batch is told to the webhooks."""
STOP_SECONDS: Final = 5.0
"""How long a stop waits, for instance for a webhook that does not answer: that is told again after the next start."""
_PROCESSES: Final = (DutyKind.PLAN, DutyKind.ASSEMBLE)


@dataclass
class Supervisor:
    """Runs a process for planning and one for assembling, starts it again when it dies, and frees what a dead one held.

    Several services may share one store. Each frees what its own children held, at its end what it held itself, and at
    its start what a service held that is known to be dead. What one of another host held is free when its lease ends.

    Beside them, in threads: telling the webhooks, and ending what nobody works on any more.
    """

    settings: ServiceSettings
    duties: Duties
    life: BatchLife
    watching: Watching
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _children: dict[DutyKind, subprocess.Popen[bytes]] = field(default_factory=dict)
    _starting: threading.Lock = field(default_factory=threading.Lock)
    """Held while a child is started, so that a stop ends every child."""

    def start(self) -> None:
        self._free_dead_holders()
        for kind in _PROCESSES:
            self._thread(f"{kind} process", self._keep, kind)
        self._thread("tidy", self._tidy)
        self._thread("notify", self._notify)
        self._thread("clean", Cleaner.open(self.settings).run_until, self._over)

    def stop(self) -> None:
        with self._starting:
            self._over.set()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        # A webhook that does not answer is told by the next service, and not after a lease.
        self._free(process_name(), lost=False)

    def _thread(self, name: str, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _keep(self, kind: DutyKind) -> None:
        """Stays in the thread that started the child: the kernel ends the child when that thread ends."""
        while True:
            try:
                with self._starting:
                    if self._over.is_set():
                        return
                    child = self._children[kind] = start_child(_command(kind), stdin=subprocess.PIPE)
            except OSError:  # no memory for one, say
                log.exception("the %s process could not be started; it is tried again", kind)
                self._over.wait(RESTART_SECONDS)
                continue
            _tell(child, self.settings)
            code = child.wait()
            over = self._over.is_set()
            self._free(child_name(process_name(), kind, child.pid), lost=not over)
            if not over:
                log.warning("the %s process %d ended with code %d; starting it again", kind, child.pid, code)
                self._over.wait(RESTART_SECONDS)

    def _free(self, holder: str, *, lost: bool) -> None:
        """Ends a dead process's leases at once; where the store is away they end by themselves."""
        try:
            self.duties.free_those_of(holder, lost=lost)
        except StoreTroubleError as error:
            log.warning("could not free the duties of %s: %s", holder, error)

    def _tidy(self) -> None:
        while not self._over.wait(TIDY_SECONDS):
            for tidy in (
                *(self.life.expire_due, self.life.raise_due, self.life.settle_ending),
                self.watching.pause_due,
            ):
                try:
                    tidy()
                except StoreTroubleError as error:
                    log.warning("%s waits for the store: %s", tidy.__name__, error)
                except Exception:
                    log.exception("%s broke off; it is tried again", tidy.__name__)

    def _notify(self) -> None:
        with contextlib.closing(Notifier.open(self.settings)) as notifier:
            while not self._over.is_set():
                try:
                    worked = notifier.run_once()
                except StoreTroubleError as error:
                    log.warning("a notify duty waits for the store: %s", error)
                    worked = False
                except Exception:
                    log.exception("a notify duty broke off; it is tried again when its lease ends")
                    worked = False
                if not worked:
                    self._over.wait(NOTIFY_SECONDS)

    def _free_dead_holders(self) -> None:
        for holder in self.duties.holders():
            if is_known_dead(holder.partition("/")[0]):
                self.duties.free_those_of(holder)


def _command(kind: DutyKind) -> list[str]:
    return [sys.executable, "-m", "airflow_batch_llm.service.duty_process", kind, process_name()]


def _tell(child: subprocess.Popen[bytes], settings: ServiceSettings) -> None:
    """Hands the settings to a child. One that was killed before it took them is seen by its code."""
    assert child.stdin is not None  # noqa: S101 (it was started with one)
    with contextlib.suppress(BrokenPipeError), child.stdin as stream:
        stream.write(settings.to_json())
