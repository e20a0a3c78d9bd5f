"""A store that is away for a while is a line in the log for each try, and no traceback: there is nothing to mend."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.service import duty_process, supervisor
from airflow_batch_llm.service.cleaner import Cleaner
from airflow_batch_llm.service.duties import DutyRunner
from airflow_batch_llm.service.notifier import Notifier
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.supervisor import Supervisor
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.database import StoreTroubleError


class Ended(BaseException):
    """Ends a loop that has no end."""


class Loops:
    """Each loop of a service, for one round in which its work raises."""

    def __init__(self, state: ServiceState, patch: pytest.MonkeyPatch, error: Exception) -> None:
        self._state, self._patch, self._error = state, patch, error
        self._over = threading.Event()

    def _raise(self, *_: Any) -> NoReturn:
        self._over.set()
        raise self._error

    def duty(self) -> None:
        def pause(_: float) -> NoReturn:
            raise Ended

        self._patch.setattr(DutyRunner, "run_once", self._raise)
        self._patch.setattr(duty_process.time, "sleep", pause)
        with pytest.raises(Ended):
            duty_process._work(duty_process.runner(DutyKind.PLAN, self._state.settings), DutyKind.PLAN)

    def cleaner(self) -> None:
        self._patch.setattr(Cleaner, "run_once", self._raise)
        Cleaner.open(self._state.settings).run_until(self._over)

    def notifier(self) -> None:
        self._patch.setattr(Notifier, "run_once", self._raise)
        self._supervisor()._notify()

    def tidy(self) -> None:
        def expire_due(_: Any) -> NoReturn:
            self._raise()

        self._patch.setattr(supervisor, "TIDY_SECONDS", 0)
        self._patch.setattr(type(self._state.life), "expire_due", expire_due)
        self._supervisor()._tidy()

    def _supervisor(self) -> Supervisor:
        made = Supervisor(self._state.settings, self._state.duties, self._state.life, self._state.watching)
        self._patch.setattr(made, "_over", self._over)
        return made


LOOPS: list[Callable[[Loops], None]] = [Loops.duty, Loops.cleaner, Loops.notifier, Loops.tidy]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("error", [StoreTroubleError("The store cannot be used: away."), ValueError("a fault of ours")])
def test_only_what_is_a_fault_of_ours_is_logged_with_its_traceback(
    state: ServiceState,
    settings: ServiceSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loop: Callable[[Loops], None],
    error: Exception,
) -> None:
    caplog.set_level(logging.WARNING)
    loop(Loops(state, monkeypatch, error))
    [record] = caplog.records
    assert str(error) in caplog.text
    assert (record.exc_info is None) == isinstance(error, StoreTroubleError)
