"""The operator that turns a table into another one with an LLM, or has an uploaded request file answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

from airflow.sdk import BaseOperator, Context
from pydantic import BaseModel

from airflow_batch_llm import clock
from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks import task_state
from airflow_batch_llm.hooks.airflow_names import (
    AirflowException,
    TaskDeferralError,
    TaskDeferralTimeout,
)
from airflow_batch_llm.hooks.batch_llm import BatchLLMHook
from airflow_batch_llm.hooks.failures import log_failures
from airflow_batch_llm.hooks.map_label import label
from airflow_batch_llm.hooks.metrics import send_metrics
from airflow_batch_llm.hooks.outcome import estimated, outcome, refusals_fail_the_task, tell_assets
from airflow_batch_llm.hooks.progress_xcom import nobody, push_end, pushed
from airflow_batch_llm.hooks.waiting import wait_here
from airflow_batch_llm.links.batch_llm import BatchLLMLink
from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.operators import arguments
from airflow_batch_llm.operators.answer_type import answer_schema
from airflow_batch_llm.operators.canary import CanaryGate, Check, at_gate
from airflow_batch_llm.operators.creation import batch_create
from airflow_batch_llm.operators.error_budget import ErrorBudget
from airflow_batch_llm.operators.gates import Gates
from airflow_batch_llm.operators.held_batch import HeldBatch
from airflow_batch_llm.operators.noted import Note, source_hash
from airflow_batch_llm.operators.opening import Opening
from airflow_batch_llm.operators.queue_place import Deadline, Priority, QueuePlace, queue_place
from airflow_batch_llm.operators.server import Server
from airflow_batch_llm.operators.sources import Place, given, is_uploaded, placed
from airflow_batch_llm.operators.sql_source import SQLSource
from airflow_batch_llm.operators.submission import TaskBatchNames
from airflow_batch_llm.triggers.batch_llm import BatchLLMTrigger, check_serialises
from airflow_batch_llm.wire import Batch, Compression, OnChanged, Reuse, TableFormat

INLINE_POLL: Final = timedelta(seconds=1)
"""How often a worker looks before it defers: it waits there for the short batches."""


class BatchLLMOperator(BaseOperator):
    """Has a pool of GPU workers answer one prompt per row of ``source``, and gives a table ``target`` with the answers.

    The target has one row per source row, in the source's order. The task's result (XCom) is the batch's manifest: the
    target's files, and the rows by status. Rows that failed are rows of the target, and do not fail the task unless
    there are more of them than ``max_error_rate`` or ``max_errors`` allows.

    Instead of a table, ``input_file_id`` names an uploaded file of requests, on our service or on any other server with
    OpenAI's batch API. Then the result is ``{"batch_id", "status", "output_file_id", "error_file_id",
    "request_counts", "usage"}``.

    A retry finds the batch of the try before it, and a batch that ended early goes on from what was done; one with too
    many failed rows asks for those again. Clearing the task submits anew. A batch that cannot be run at all (a wrong
    column, a target that exists) fails without retries.

    Another server knows neither keys nor holders, so that some promises are weaker there. The key is noted in the
    metadata (``batch_llm_key``), and a retry looks for it among the newest 500 batches of the last 30 days: if the try
    before it died between submit and answer, and the server does not list that batch (yet), it is submitted twice. A
    batch that ended early starts anew. A cancel counts whoever holds the batch by then, and a cleared task does not end
    the batch before it unless Airflow does so by ``cancel_on_kill``. A table, a priority or a deadline is refused
    before anything is submitted.

    :param source: where the rows are: a file (.parquet, .jsonl, .csv; the latter two also .gz or .zst), a folder ending
        in ``/`` or a pattern, below one of the service's data roots or ``s3://`` prefixes, or a list of these
        (templated). Or the rows themselves: a list of dicts (their texts are no templates), or a ``SQLSource``; these
        are uploaded, and a retry goes on with what was uploaded.
    :param target: where the result goes: a file, in the format that its ending names, or a folder ending in ``/``
        (templated).
    :param quarantine: where a copy of the rows that failed goes, besides the target: a file in the target's format
        (templated). It has the target's columns, and no rows if none has failed.
    :param format: of a target folder: ``parquet`` (unless given), ``jsonl`` or ``csv``.
    :param compression: of a target folder's files: ``none``, ``gzip`` or ``zstd``.
    :param model: a model that the pool's workers serve (templated).
    :param prompt: what to ask of each row; ``{column}`` becomes the row's value. Never a Jinja template, since data and
        prompts are full of braces: bring Jinja values in by ``constants``. For embeddings it is the text to embed.
    :param messages: instead of ``prompt``, a conversation: a list of ``{"role": …, "content": …}``.
    :param system_prompt: goes before ``prompt``, with placeholders of its own.
    :param constants: values for placeholders that are the same in every row (templated): ``{"day": "{{ ds }}"}``.
    :param choices: the only answers allowed.
    :param output_type: a Pydantic model or a JSON Schema of the object that every answer is to be. Its properties
        become typed columns of the target.
    :param n: how many answers each row gets; above 1 it needs a ``temperature``.
    :param passthrough: the source columns that the target repeats; all unless given.
    :param overwrite: whether a target or a quarantine that something else wrote may be replaced.
    :param max_tokens: longest answer. ``temperature`` (0 unless given), ``top_p`` and ``seed`` are the engine's too.
    :param parameters: further sampling parameters of the engine's chat completions, such as ``stop``.
    :param reuse: whether a row may get the answer of an equal row, of this batch or an earlier one, where the answer is
        determined: ``auto`` or ``never``.
    :param on_clear: after the task was cleared, whether every row is asked anew (``rerun``: people clear because
        answers were bad) or as ``reuse`` says (``reuse``).
    :param on_changed: what a retry does where its batch asks something else than the task by now, because the Dag or
        the source was changed: cancel that one and begin anew (``resubmit``), or fail (``fail``). What was answered
        before the change is never the result.
    :param dry_run: only plan the table. The result is an estimate of rows, tokens and time, and no target is written.
    :param max_error_rate: the task fails if a larger share of the rows failed, from 0 to 1. The target is there all the
        same, and a retry asks for the failed rows alone.
    :param max_errors: the same for a number of rows.
    :param max_invalid_rate: the same for the rows whose answer fits neither ``choices`` nor ``output_type``
        (``llm_status`` is ``invalid_output``). They count as failed for the two others as well.
    :param canary_rows: run so many of the first rows before the others (at most 10,000) and judge them on the worker:
        by the limits above, as shares of these rows, and by ``canary_check``. If they do not pass, the batch is
        cancelled and the task fails; else the others follow.
    :param canary_check: a function that gets the results of these rows, in their order: a list of dicts with ``row``
        (its number, from 0), the ``llm_…`` columns and those of ``output_type``. It stops the batch by returning False
        or raising. Rows that equal another one are not among them.
    :param input_file_id: instead of a table, an uploaded request file (templated).
    :param endpoint: what the rows or the requests of the file are for; ``/v1/chat/completions`` unless given. A table
        is for that or for ``/v1/embeddings``.
    :param completion_window: after how long the rest is given up, such as ``24h``. A table has none unless given, a
        request file ``24h``.
    :param metadata: shown with the batch, at most 15 pairs (templated).
    :param priority: batches with a higher one go first: a number from -1000 to 1000, a word (``low`` -100, ``normal``
        0, ``high`` 100, ``urgent`` 500), or a callable of the context that gives one, called in the Airflow worker.
        Unless given it is the connection's (extra ``priority``), or else that of the run's type: manual runs are high,
        backfills low, all others normal. The key ``batch_llm_priority`` of a Dag run's conf goes before all of these.
        Among equals Dags take turns.
    :param deadline: by when the batch must be done, else the rest is given up: a datetime, a text of one (templated),
        or a timedelta from the submit. The earlier of this and ``completion_window`` counts. Within a priority the
        earliest goes first, and one with a quarter of its time left goes before all others.
    :param conn_id: a connection of type ``batch_llm``.
    :param wait_for_completion: if False, the task ends at once with the batch's id as its result, for a
        ``BatchLLMSensor`` to wait on.
    :param deferrable: whether to wait in the triggerer, which is the default whatever
        ``[operators] default_deferrable`` says, because a batch takes long and a worker slot is dear.
    :param cancel_on_kill: whether the batch is cancelled with the task: killed, failed, cleared or timed out.
    :param pause_unwatched_after: pauses the batch when no task, sensor or person has watched it for so long, at least
        two minutes, until one does; else it goes on to its end. It is for where a task may end without its batch being
        cancelled: before Airflow 3.3, or where a triggerer is lost for good.
    :param poll_interval: seconds between two looks at the batch, where it is looked at by itself: in a worker, and on
        other servers. In a triggerer one request waits for all batches of our service.
    :param timeout: how long the batch may take in all, counted anew in each try.
    :param inline_wait: seconds to wait in the worker before deferring. A batch shorter than this never defers.
    :param progress_xcom: whether the task's XCom ``progress`` says how far the batch is, also while it is deferred.

    In ``map_index_template`` the names ``batch_id``, ``rows`` and ``rows_failed`` are known once the task has ended.
    """

    template_fields: Sequence[str] = (
        "source",
        "target",
        "quarantine",
        "model",
        "constants",
        "input_file_id",
        "metadata",
        "deadline",
    )
    operator_extra_links = (BatchLLMLink(),)
    ui_color = "#e8e3f7"

    linked_batch: str | None = None
    """The batch that the link leads to; set once it is submitted."""
    _held: HeldBatch | None = None
    _killed: bool = False

    def __init__(
        self,
        *,
        source: str | Sequence[str] | Sequence[Mapping[str, Any]] | SQLSource | None = None,
        target: str | None = None,
        quarantine: str | None = None,
        format: TableFormat | None = None,  # noqa: A002 (the word for it)
        compression: Compression | None = None,
        model: str | None = None,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        system_prompt: str | None = None,
        constants: dict[str, Any] | None = None,
        choices: Sequence[str] | None = None,
        output_type: type[BaseModel] | Mapping[str, Any] | None = None,
        passthrough: Sequence[str] | None = None,
        overwrite: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        n: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        reuse: Reuse = "auto",
        on_clear: str = "rerun",
        on_changed: OnChanged = "resubmit",
        dry_run: bool = False,
        max_error_rate: float | None = None,
        max_errors: int | None = None,
        max_invalid_rate: float | None = None,
        canary_rows: int | None = None,
        canary_check: Check | None = None,
        input_file_id: str | None = None,
        endpoint: str | None = None,
        completion_window: str | None = None,
        metadata: dict[str, str] | None = None,
        priority: Priority | None = None,
        deadline: Deadline | None = None,
        conn_id: str = BatchLLMHook.default_conn_name,
        wait_for_completion: bool = True,
        deferrable: bool = True,
        cancel_on_kill: bool = True,
        pause_unwatched_after: timedelta | None = None,
        poll_interval: float = 5.0,
        timeout: timedelta | None = None,
        inline_wait: float = 10.0,
        progress_xcom: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "n": n}
        asked: dict[str, Any] = {"prompt": prompt, "messages": messages, "system_prompt": system_prompt}
        chat = {"messages": messages, "system_prompt": system_prompt, "choices": choices, "output_type": output_type}
        table = {"target": target, "format": format, "compression": compression, "model": model, **asked, **chat}
        table |= {"constants": constants, **sampling, "parameters": parameters, "passthrough": passthrough}
        table |= {"quarantine": quarantine, "overwrite": overwrite or None, "reuse": None if reuse == "auto" else reuse}
        table |= {"canary_rows": canary_rows, "canary_check": canary_check}
        budget: dict[str, Any] = {"max_error_rate": max_error_rate, "max_errors": max_errors}
        budget["max_invalid_rate"] = max_invalid_rate
        waits = {"wait_for_completion": wait_for_completion}
        source = given(source)
        arguments.check_kind(
            source=source, input_file_id=input_file_id, endpoint=endpoint, dry_run=dry_run, table=table
        )
        arguments.check_source(source)
        arguments.check_target(target, format=format, compression=compression)
        arguments.check_quarantine(quarantine, target, format=format)
        arguments.check_constants(constants)
        arguments.check_choices(choices)
        arguments.check_passthrough(passthrough)
        arguments.check_typed(choices=choices, output_type=output_type, n=n)
        arguments.check_word("reuse", reuse)
        arguments.check_word("on_clear", on_clear)
        arguments.check_word("on_changed", on_changed)
        arguments.check_budget(**budget, **waits, fits=bool(choices or output_type))
        arguments.check_dry_run(dry_run=dry_run, source=source, budget=budget, overwrite=overwrite, **waits)
        arguments.check_canary(
            canary_rows=canary_rows, canary_check=canary_check, limits=budget, dry_run=dry_run, **waits
        )
        arguments.check_completion_window(completion_window)
        arguments.check_metadata(metadata)
        arguments.check_priority(priority)
        arguments.check_deadline(deadline)
        arguments.check_unwatched(pause_unwatched_after)
        arguments.check_outlets(self.outlets, **waits)
        arguments.check_waiting(poll_interval=poll_interval, timeout=timeout, inline_wait=inline_wait)
        embeds = source is not None and endpoint == EMBEDDINGS
        self.source = source
        self.target = target
        self.quarantine = quarantine
        self.format = format
        self.compression = compression
        self.model = model
        self.constants = constants
        self.input = arguments.as_input(prompt, {**chat, **sampling}) if embeds else None
        self.messages = [] if source is None or embeds else arguments.as_messages(**asked)
        self.choices = None if choices is None else list(choices)
        self.output_schema = answer_schema(output_type)
        self.passthrough = None if passthrough is None else list(passthrough)
        self.overwrite = overwrite
        self.parameters = arguments.as_parameters(sampling, parameters)
        self.reuse = reuse
        self.on_clear = on_clear
        self.on_changed = on_changed
        self.estimates = dry_run  # Airflow's operators have a method dry_run
        self.max_error_rate = max_error_rate
        self.max_errors = max_errors
        self.max_invalid_rate = max_invalid_rate
        self.canary_rows = canary_rows
        self.canary_check = canary_check
        self.input_file_id = input_file_id
        self.endpoint = endpoint
        self.completion_window = completion_window
        self.metadata = metadata
        self.priority = priority
        self.deadline = deadline
        self.conn_id = conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.cancel_on_kill = cancel_on_kill
        self.pause_unwatched_after = pause_unwatched_after
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.inline_wait = inline_wait
        self.progress_xcom = progress_xcom

    @cached_property
    def hook(self) -> BatchLLMHook:
        return BatchLLMHook(self.conn_id)

    def execute(self, context: Context) -> Any:
        """Submits the batch, or finds it again, and waits for it: here at first, then deferred."""
        started = clock.now()
        names = self._names(context)
        check_serialises(self._trigger("batch_0", names.holder))
        batch, held = self._submitted(names, context)
        if self._killed and self.cancel_on_kill:
            raise AirflowException(f"The task was killed while it submitted its batch. {self._end(held)}")
        label(context, batch)
        if not self.wait_for_completion:
            return batch.id
        batch = self._waited_here(batch, held, started, context["ti"])
        while at_gate(batch):
            batch = self._waited_here(self._gates.judge_first_rows(batch, held), held, started, context["ti"])
        if batch.status.ended:
            return self._finished(batch, context)
        return self._deferred(batch, held, started)

    def execute_complete(self, context: Context, event: dict[str, Any], started: float | None = None, **_: Any) -> Any:
        """Takes over when the batch has ended, or its first rows are to be judged, after which it defers again.

        Knows nothing but the event, and asks the service for the rest.
        """
        self.linked_batch = event["batch_id"]
        if "error" in event:
            raise AirflowException(
                f"Batch {event['batch_id']} cannot be followed any more: {event['error']} "
                "A retry finds it again, or submits it anew if it is gone."
            )
        with self.hook.get_conn() as client:
            batch = client.get(event["batch_id"])
        if batch.status.ended:
            return self._finished(batch, context)
        held = self._held = HeldBatch(self.hook.address, batch.id, self._names(context).holder)
        if at_gate(batch):
            batch = self._gates.judge_first_rows(batch, held)
        return self._deferred(batch, held, clock.now() if started is None else clock.from_unix(started))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continues after the deferral. If that timed out or its trigger died, the batch is cancelled first."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout as error:
            end = self._end_after_deferral(context)
            raise TaskDeferralTimeout(f"The batch was not done within {self.timeout}. {end}") from error
        except TaskDeferralError as error:
            raise TaskDeferralError(f"{error}. {self._end_after_deferral(context)}") from error

    def on_kill(self) -> None:
        """Cancels the batch when the task is killed while it runs on a worker. Airflow may call this in a signal, and
        lets the task go on after it: one that was not submitted yet is cancelled as soon as it is."""
        self._killed = True
        if self._held is not None:
            self.log.info("%s", self._end(self._held))

    @property
    def budget(self) -> ErrorBudget:
        if self.estimates:
            return ErrorBudget()
        return ErrorBudget(self.max_error_rate, self.max_errors, self.max_invalid_rate)

    def _names(self, context: Context) -> TaskBatchNames:
        clears = getattr(context.get("dag_run"), "clear_number", None) or 0
        return TaskBatchNames.of(
            context["ti"],
            self.hook.deployment,
            retries=self.retries or 0,
            dry_run=self.estimates,
            clears=clears,
        )

    def _submitted(self, names: TaskBatchNames, context: Context) -> tuple[Batch, HeldBatch]:
        with refusals_fail_the_task(), self.hook.get_conn() as client:
            server = self._server(client, names, context)
            server.check(
                table=self.source is not None,
                priority=self.priority,
                deadline=self.deadline,
                pause_unwatched_after=self.pause_unwatched_after,
            )
            names = server.present(names)
            queue = self._queue_place(context) if server.extensions else QueuePlace()
            note = Note(names.clears, self._source_hash) if server.extensions else Note()
            opening = Opening(
                server=server,
                key=names.key,
                create=lambda source: batch_create(self, names, queue, source, note),
                place=lambda: self._place(context, client),
                source=note.source,
                budget=self.budget,
                log=self.log,
            )
            batch = opening.batch(found_first=self._finds_first)
        held = self._held = self._hold(batch, names.holder, server)
        self.log.info("Batch %s, submitted under the key %s, is %s", batch.id, names.key, batch.status.value)
        task_state.leave(context, batch, key=names.key, url=self.hook.address.batch_url(batch.id), log=self.log)
        return batch, held

    def _server(self, client: BatchClient, names: TaskBatchNames, context: Context) -> Server:
        if self.hook.has_extensions(client):
            return Server(client, extensions=True)
        return Server(client, extensions=False, known=task_state.left(context, key=names.key, log=self.log))

    def _queue_place(self, context: Context) -> QueuePlace:
        extra = self.hook.connection.extra_dejson
        return queue_place(context, priority=self.priority, deadline=self.deadline, extra=extra)

    @property
    def _finds_first(self) -> bool:
        """Whether an earlier try's batch is looked for before the source is found out, which is dear."""
        return is_uploaded(self.source)

    @property
    def _source_hash(self) -> str | None:
        """Of what the Dag says of rows that the task uploads itself; None where the service reads them, or unknown."""
        return source_hash(given(self.source))

    def _place(self, context: Context, client: BatchClient) -> Place | None:
        """Where the rows are, which may have to be uploaded first; None for a request file."""
        return None if self.source is None else placed(self.source, client, self.log)

    def _hold(self, batch: Batch, holder: str, server: Server) -> HeldBatch:
        return HeldBatch(
            self.hook.address, self._seen(batch).id, (batch.holder or holder) if server.extensions else None
        )

    def _seen(self, batch: Batch) -> Batch:
        self.linked_batch = batch.id
        return batch

    def _waited_here(self, batch: Batch, held: HeldBatch, started: datetime, ti: Any) -> Batch:
        """The batch after the inline wait; for a task that does not defer, once it ended."""
        if batch.status.ended:
            return batch
        at_most, every = self._left(started), timedelta(seconds=self.poll_interval)
        if self.deferrable:
            inline = timedelta(seconds=self.inline_wait)
            at_most = inline if at_most is None else min(inline, at_most)
            every = min(every, INLINE_POLL)
        ended = wait_here(
            self.hook.address,
            batch.id,
            poll_interval=every,
            at_most=at_most,
            log=self.log,
            gated=True,
            tell=pushed(ti, self.log) if self.progress_xcom else nobody,
        )
        if ended is None and not self.deferrable:
            raise AirflowException(f"The batch was not done within {self.timeout}. {self._end(held)}")
        return ended or batch

    def _left(self, started: datetime) -> timedelta | None:
        """How much of the timeout is left; at least a second, so that there is one way of timing out."""
        if self.timeout is None:
            return None
        return max(self.timeout - (clock.now() - started), timedelta(seconds=1))

    def _finished(self, batch: Batch, context: Context) -> dict[str, Any]:
        self._held = None
        if self.estimates:
            self.outlets = []  # nothing was written that an asset's event could tell of
            return estimated(batch, self.log)
        self._show_end(batch, context)
        result = outcome(batch, self.log)
        self._gates.judge_end(batch)
        tell_assets(context, self.outlets, batch)
        return result

    def _show_end(self, batch: Batch, context: Context) -> None:
        """Leaves in Airflow how the batch ended: in the log, the XCom, the label of a mapped task and the metrics."""
        label(context, batch)
        if self.progress_xcom:
            push_end(context["ti"], batch, self.log)
        send_metrics(batch, context["ti"], self.log)
        log_failures(batch, self.hook.get_conn, self.log)

    def _deferred(self, batch: Batch, held: HeldBatch, started: datetime) -> Any:
        return self.defer(
            trigger=self._trigger(batch.id, held.holder),
            method_name="execute_complete",
            kwargs={"started": started.timestamp()},
            timeout=self._left(started),
        )

    @property
    def _gates(self) -> Gates:
        canary = None
        if self.canary_rows is not None and not self.estimates:
            canary = CanaryGate(self.canary_rows, self.budget, self.canary_check)
        return Gates(self.budget, canary, self.hook.get_conn, self.log)

    def _end_after_deferral(self, context: Context) -> str:
        """Ends the batch that this try deferred for: by its key, because a failed deferral has lost its id."""
        try:
            names = self._names(context)
            with self.hook.get_conn() as client:
                server = self._server(client, names, context)
                batch = server.find(server.present(names).key)
        except (BatchLLMError, ValueError, AirflowException) as error:
            return f"Its batch could not be found and may go on: {error}"
        if batch is None:
            return "Its batch is gone."
        return self._end(
            HeldBatch(self.hook.address, self._seen(batch).id, names.holder if server.extensions else None)
        )

    def _end(self, held: HeldBatch) -> str:
        return held.cancel() if self.cancel_on_kill else f"Batch {held.batch_id} goes on: cancel_on_kill is off."

    def _trigger(self, batch_id: str, holder: str | None) -> BatchLLMTrigger:
        return BatchLLMTrigger(
            conn_id=self.conn_id,
            batch_id=batch_id,
            holder=holder,
            poll_interval=self.poll_interval,
            cancel_on_kill=self.cancel_on_kill,
            progress_xcom=self.progress_xcom,
            shared=holder is not None,  # a server without holders has nothing to wait for all batches with, either
            gated=True,
        )
