"""``@task.batch_llm``: a function says what the rows are, and a pool of GPU workers answers them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import Context
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.operators.batch_llm import BatchLLMOperator
from airflow_batch_llm.operators.noted import hash_of
from airflow_batch_llm.operators.sources import Place


class _BatchLLMDecoratedOperator(DecoratedOperator, BatchLLMOperator):
    """Wraps a function that returns the ``source`` of a :class:`BatchLLMOperator`: rows, places or a ``SQLSource``.

    The function is called when no try of the task has submitted a batch yet: a retry goes on with the batch and the
    source that there are, unless the function's text or its arguments have changed. Nothing that it returns is
    rendered by Jinja; a ``SQLSource`` made in it is complete.

    :param python_callable: the function.
    :param op_args: its positional arguments (templated).
    :param op_kwargs: its keyword arguments (templated).
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in BatchLLMOperator.template_fields if name not in ("source", "input_file_id")),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {**DecoratedOperator.template_fields_renderers}
    custom_operator_name: str = "@task.batch_llm"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("source", "input_file_id"):
            if name in kwargs:
                raise ValueError(f"{name} is no argument of @task.batch_llm: the function returns the source.")
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, source=SET_DURING_EXECUTION, **kwargs
        )

    def execute(self, context: Context) -> Any:
        return BatchLLMOperator.execute(self, context)

    @property
    def _finds_first(self) -> bool:
        return True

    @property
    def _source_hash(self) -> str | None:
        try:
            text = inspect.getsource(self.python_callable)
        except (OSError, TypeError):
            return None
        return hash_of([text, list(self.op_args), dict(self.op_kwargs)])

    def _place(self, context: Context, client: BatchClient) -> Place | None:
        self.op_kwargs = {**self.op_kwargs}
        arguments = self.determine_kwargs({**context, **self.op_kwargs})
        self.source = self.python_callable(*self.op_args, **arguments)
        return super()._place(context, client)


def batch_llm_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Makes a task of a function that returns rows, places or a ``SQLSource``; the result is the batch's manifest.

    ::

        @task.batch_llm(model="Qwen/Qwen3-8B", prompt="What is this about? {text}", target="labels/{{ ds }}.parquet")
        def label(reviews: list[str]) -> list[dict]:
            return [{"text": review} for review in reviews]

    :param python_callable: the function.
    :param kwargs: the arguments of :class:`BatchLLMOperator`, and of every operator.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_BatchLLMDecoratedOperator, **kwargs
    )
