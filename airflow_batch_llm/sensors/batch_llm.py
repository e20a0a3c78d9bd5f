"""The sensor that waits for a batch that something else submitted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue

from airflow_batch_llm import clock
from airflow_batch_llm.hooks.airflow_names import AirflowException
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.outcome import outcome
from airflow_batch_llm.hooks.waiting import ProgressLog
from airflow_batch_llm.links.batch_llm import BatchLLMLink
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger
from airflow_batch_llm.wire import Batch


class BatchLLMSensor(BaseSensorOperator):
    """Waits until a batch has ended, and gives its manifest. Never cancels it: the batch is somebody else's.

    Fails as ``BatchLLMOperator`` does where the batch did not complete. ``timeout``, ``mode``, ``soft_fail`` and the
    rest are those of every sensor.

    :param batch_id: the batch, such as the result of a ``BatchLLMOperator`` that does not wait (templated).
    :param conn_id: a connection of type ``batch_llm``.
    :param deferrable: whether to wait in the triggerer.
    :param poke_interval: seconds between two looks.
    """

    template_fields: Sequence[str] = ("batch_id",)
    operator_extra_links = (BatchLLMLink(),)
    ui_color = "#e8e3f7"

    batch_url: str | None = None

    def __init__(
        self,
        *,
        batch_id: str,
        conn_id: str = BatchLLMHook.default_conn_name,
        deferrable: bool = True,
        poke_interval: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.batch_id = batch_id
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
        batch = self._batch()
        if batch.status.ended:
            return outcome(batch, self.log)
        return self.defer(
            trigger=BatchLLMTrigger(self.conn_id, self.batch_id, poll_interval=self.poke_interval),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: dict[str, Any], **_: Any) -> Any:
        if "error" in event:
            raise AirflowException(f"Batch {event['batch_id']} cannot be followed any more: {event['error']}")
        return outcome(self._batch(), self.log)

    def poke(self, context: Context) -> PokeReturnValue:
        batch = self._batch()
        if not batch.status.ended:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=outcome(batch, self.log))

    def _batch(self) -> Batch:
        self.batch_url = self.hook.address.batch_url(self.batch_id)
        with self.hook.get_conn() as client:
            batch = client.get(self.batch_id)
        self._progress.saw(batch, now=clock.now())
        return batch
