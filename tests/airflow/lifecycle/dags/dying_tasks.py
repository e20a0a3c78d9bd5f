"""Tasks whose process is killed in their first try, at one of five moments around the submit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn
from unittest.mock import patch

import httpx
from airflow.sdk import BaseOperatorLink, Context, dag

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator

MOMENTS = (
    "before_the_request",
    "while_it_is_answered",
    "after_the_answer",
    "before_the_deferral",
    "after_the_deferral",
)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("A process survived SIGKILL.")


class LastBreath(BaseOperatorLink):
    """Airflow asks for a task's links after it has stored what became of the task: here, that it is deferred."""

    name = "Last breath"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        if operator.moment == "after_the_deferral" and operator.may_die:
            die()
        return ""


class DyingOperator(BatchLLMOperator):
    """Is killed at ``moment`` of its first try."""

    operator_extra_links = (LastBreath(),)
    may_die = False

    def __init__(self, *, moment: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.moment = moment

    def execute(self, context: Context) -> Any:
        self.may_die = context["ti"].try_number == 1
        if not self.may_die:
            return super().execute(context)
        with patch.object(httpx.Client, "request", dying_request(self.moment, self.hook.get_conn)):
            return super().execute(context)

    def defer(self, **arguments: Any) -> NoReturn:
        if self.moment == "before_the_deferral" and self.may_die:
            die()
        super().defer(**arguments)


def dying_request(moment: str, connect: Callable[[], BatchClient]) -> Callable[..., httpx.Response]:
    """``httpx.Client.request``, whose caller is killed at ``moment`` of a submit."""
    request = httpx.Client.request

    def requested(client: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response:
        if (method, path) != ("POST", "/v1/batches"):
            return request(client, method, path, **given)
        if moment == "before_the_request":
            die()

        def trace(event: str, _: Any) -> None:
            """Told by httpx of each step: the request is sent, and nothing of its answer is read."""
            if moment == "while_it_is_answered" and event.endswith("receive_response_headers.started"):
                with connect() as other:
                    while other.find(given["json"]["key"]) is None:
                        time.sleep(0.05)
                die()

        response = request(client, method, path, **{**given, "extensions": {**given["extensions"], "trace": trace}})
        if moment == "after_the_answer":
            die()
        return response

    return requested


def dying_at(moment: str) -> None:
    @dag(dag_id=f"dies_{moment}", schedule=None)
    def dying() -> None:
        DyingOperator(
            task_id="answer",
            moment=moment,
            source=[{"text": "good"}, {"text": "bad"}],
            target="dying/{{ dag.dag_id }}.jsonl",
            model="m",
            prompt="{text}?",
            poll_interval=0.5,
            inline_wait=0.0,
            retries=1,
            retry_delay=timedelta(seconds=1),
        )

    dying()


for moment in MOMENTS:
    dying_at(moment)
