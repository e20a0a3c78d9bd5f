"""The sensor that waits for batches that something else submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue
from airflow.triggers.base import BaseTrigger

from airflow_batch_llm import clock
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.hooks.airflow_names import AirflowException, AirflowFailException, AirflowSkipException
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.failures import log_failures
from airflow_batch_llm.hooks.names import run_group
from airflow_batch_llm.hooks.outcome import outcome, refusals_fail_the_task, tell_assets
from airflow_batch_llm.hooks.waiting import ProgressLog
from airflow_batch_llm.links.batch_llm import BatchLLMLink
from airflow_batch_llm.sensors.awaited import Awaited, summary
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger
from airflow_batch_llm.triggers.search import BatchLLMSearchTrigger
from airflow_batch_llm.wire import Batch

UNNAMED: Final[Any] = object()
"""Not given at all; None may be what another task left."""
ON_EMPTY: Final = ("wait", "done")


class BatchLLMSensor(BaseSensorOperator):
    """Waits until batches have ended. Never cancels them: they are somebody else's.

    By ``batch_id`` or ``key`` it waits for one batch, and its result is that of the ``BatchLLMOperator``: the manifest.
    Without either it waits for all batches that tasks of a Dag run have submitted, of its own run unless
    ``external_dag_id`` or ``external_run_id`` name another one; then the result is a list of ``{"batch_id",
    "manifest", "rows", "rows_failed"}``, one for each, where ``manifest`` is the place of the manifest. Where a task
    was cleared its last batch counts.

    It fails where a batch did not complete: without retries where that was named by its id. A key that nobody has used
    yet, or a run without a batch, is waited for like a batch that is not done, because it may yet come; see
    ``on_empty``. ``timeout``, ``soft_fail``, ``never_fail`` and, for a sensor that does not defer, ``mode`` are those
    of every sensor. ``soft_fail`` also skips it where a batch did not complete.

    :param batch_id: the batch, such as the result of a ``BatchLLMOperator`` that does not wait (templated).
    :param key: the key of a batch; the newest generation under it counts (templated).
    :param external_dag_id: the Dag of the run, in this Airflow; its own unless given (templated).
    :param external_run_id: the run; its own unless given (templated).
    :param on_empty: whether a run without a batch is waited for (``wait``) or there is nothing to wait for (``done``,
        with an empty list as the result).
    :param conn_id: a connection of type ``batch_llm``.
    :param deferrable: whether to wait in the triggerer.
    :param poke_interval: seconds between two looks.
    """

    template_fields: Sequence[str] = ("batch_id", "key", "external_dag_id", "external_run_id")
    operator_extra_links = (BatchLLMLink(),)
    ui_color = "#e8e3f7"

    linked_batch: str | None = None
    _seen: tuple[int, int] | None = None
    """How many batches of a run had ended, of how many, at the last look."""

    def __init__(
        self,
        *,
        batch_id: str | None = UNNAMED,
        key: str | None = UNNAMED,
        external_dag_id: str | None = None,
        external_run_id: str | None = None,
        on_empty: str = "wait",
        conn_id: str = BatchLLMHook.default_conn_name,
        deferrable: bool = True,
        poke_interval: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        named = [name for name, given in (("batch_id", batch_id), ("key", key)) if given is not UNNAMED]
        named += ["a Dag run"] if external_dag_id is not None or external_run_id is not None else []
        if len(named) > 1:
            raise ValueError(f"A sensor waits for one thing, and this one names {' and '.join(named)}.")
        if on_empty not in ON_EMPTY:
            raise ValueError(f"on_empty is {on_empty!r}; it is one of {', '.join(ON_EMPTY)}.")
        self.waits_for = named[0] if named and named != ["a Dag run"] else "run"
        if on_empty == "done" and self.waits_for != "run":
            raise ValueError(f"on_empty is for the batches of a Dag run, and this sensor names a {self.waits_for}.")
        self.batch_id = None if batch_id is UNNAMED else batch_id
        self.key = None if key is UNNAMED else key
        external = {"external_dag_id": external_dag_id, "external_run_id": external_run_id}
        self.given_external = [name for name, value in external.items() if value is not None]
        self.external_dag_id = external_dag_id
        self.external_run_id = external_run_id
        self.on_empty = on_empty
        self.conn_id = conn_id
        self.deferrable = deferrable

    @cached_property
    def hook(self) -> BatchLLMHook:
        return BatchLLMHook(self.conn_id)

    @cached_property
    def _progress(self) -> ProgressLog:
        return ProgressLog(self.log)

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            return super().execute(context)
        with self._softly():
            return self._result_or_defer(context, clock.now() + timedelta(seconds=self.timeout))

    def execute_complete(self, context: Context, event: dict[str, Any], until: str | None = None, **_: Any) -> Any:
        """Takes over when the batches have ended, and looks whether there are others by now.

        Without ``until`` (`airflow dags test` loses it) the time starts anew.
        """
        if "error" in event:
            self._link_to(event.get("batch_id"))
            raise AirflowException(f"What this sensor waits for cannot be followed any more: {event['error']}")
        ends = clock.now() + timedelta(seconds=self.timeout) if until is None else datetime.fromisoformat(until)
        return self._result_or_defer(context, ends)

    def poke(self, context: Context) -> PokeReturnValue:
        with self._softly():
            awaited = self._awaited(context)
            try:
                batches = self._look(awaited)
            except NoAnswerError as error:
                self.log.warning("%s It is asked again.", error)
                return PokeReturnValue(is_done=False)
            done = self._ended(batches)
            return PokeReturnValue(is_done=done, xcom_value=self._result(context, awaited, batches) if done else None)

    def _result_or_defer(self, context: Context, until: datetime) -> Any:
        awaited = self._awaited(context)
        shared = False
        try:
            batches = self._look(awaited)
        except NoAnswerError as error:
            self.log.warning("%s It is asked again.", error)
            self._link_to(awaited.batch_id)
        else:
            if self._ended(batches):
                return self._result(context, awaited, batches)
            shared = any(batch.team is not None for batch in batches)  # only our service says so
        return self.defer(
            trigger=self._trigger(awaited, shared=shared),
            method_name="execute_complete",
            kwargs={"until": until.isoformat()},
            timeout=timedelta(seconds=max((until - clock.now()).total_seconds(), 1.0)),
        )

    def _trigger(self, awaited: Awaited, *, shared: bool) -> BaseTrigger:
        if awaited.batch_id is not None:
            return BatchLLMTrigger(self.conn_id, awaited.batch_id, poll_interval=self.poke_interval, shared=shared)
        return BatchLLMSearchTrigger(
            self.conn_id, key=awaited.key, group=awaited.group, poll_interval=self.poke_interval
        )

    def _awaited(self, context: Context) -> Awaited:
        if self.waits_for == "run":
            ti = context["ti"]
            run = {"external_dag_id": ti.dag_id, "external_run_id": ti.run_id}
            run |= {name: self._rendered(name, what="Dag run") for name in self.given_external}
            return Awaited(group=run_group(self.hook.deployment, *run.values()))
        return Awaited(**{self.waits_for: self._rendered(self.waits_for, what="batch")})

    def _rendered(self, name: str, *, what: str) -> str:
        """What was given, which must be a name by now: nothing else is taken for it."""
        value = getattr(self, name)
        if not isinstance(value, str) or value.strip() in ("", "None"):
            raise AirflowFailException(f"Rendered, {name} is {value!r}, which names no {what}.")
        return value.strip()

    def _look(self, awaited: Awaited) -> list[Batch]:
        with refusals_fail_the_task(), self.hook.get_conn() as client:
            if awaited.batch_id is None and not self.hook.has_extensions(client):
                raise AirflowFailException(
                    f"The server at {client.url} has OpenAI's batch API only, which knows neither keys nor Dag runs: "
                    "give the sensor a batch_id."
                )
            batches = awaited.look(client)
        self._tell(awaited, batches)
        return batches

    def _tell(self, awaited: Awaited, batches: list[Batch]) -> None:
        if len(batches) == 1:
            self._link_to(batches[0].id)
            self._progress.saw(batches[0], now=clock.now())
            return
        seen = sum(batch.status.ended for batch in batches), len(batches)
        if seen != self._seen:
            self.log.info("Of %s %s of %s have ended", awaited, *seen)
            self._seen = seen

    def _link_to(self, batch_id: str | None) -> None:
        if batch_id is not None:
            self.linked_batch = batch_id

    def _ended(self, batches: list[Batch]) -> bool:
        if not batches:
            return self.on_empty == "done"
        return all(batch.status.ended for batch in batches)

    def _result(self, context: Context, awaited: Awaited, batches: list[Batch]) -> Any:
        for batch in batches:
            log_failures(batch, self.hook.get_conn, self.log)
        awaited.check(batches)
        if awaited.group is not None:
            return [summary(batch) for batch in batches]
        tell_assets(context, self.outlets, batches[0])
        return outcome(batches[0], self.log)

    @contextmanager
    def _softly(self) -> Iterator[None]:
        """Skips where Airflow would only do so after a deferral: a batch is as done at the first look."""
        try:
            yield
        except AirflowSkipException:
            raise
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
