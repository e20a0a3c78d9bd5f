"""What a batch was, as metrics of Airflow's: sent from the worker by the task that waited for it, once it has ended.

They go where Airflow's own metrics go (``[metrics]`` in its configuration), and nowhere unless that is set up. Nothing
rests on them: what cannot be sent is left out, with a line of the level debug.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from airflow_batch_llm.client.texts import rows_so_far
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch

PREFIX: Final = "batch_llm"


class Log(Protocol):
    def debug(self, event: str, *args: Any, exc_info: bool = ...) -> Any: ...


def send_metrics(batch: Batch, ti: Any, log: Log) -> None:
    """Counts a batch that ended, with Airflow's tags for the task and ``model``. Never raises."""
    try:
        stats, tags = _stats(), _tags(batch, ti)
        for name, count in counters(batch).items():
            if count:
                stats.incr(f"{PREFIX}.{name}", count, tags=tags)
        for name, milliseconds in timings(batch).items():
            stats.timing(f"{PREFIX}.{name}", milliseconds, tags=tags)
    except Exception:
        log.debug("No metrics were sent of batch %s.", batch.id, exc_info=True)


def counters(batch: Batch) -> dict[str, int]:
    """What is counted: the batch under its status, its rows and its tokens."""
    total, done, failed = rows_so_far(batch)
    prompt, completion = _tokens(batch)
    return {
        f"batches.{batch.status.value}": 1,
        "rows.total": total,
        "rows.answered": done - failed,
        "rows.failed": failed,
        "rows.reused": batch.progress.rows_reused,
        "rows.duplicate": batch.progress.rows_duplicate,
        "tokens.prompt": prompt,
        "tokens.completion": completion,
    }


def timings(batch: Batch) -> dict[str, float]:
    """In milliseconds: from submit to end, and of that how long engines worked for the batch."""
    ended_at = {
        BatchStatus.COMPLETED: batch.completed_at,
        BatchStatus.FAILED: batch.failed_at,
        BatchStatus.EXPIRED: batch.expired_at,
        BatchStatus.CANCELLED: batch.cancelled_at,
    }.get(batch.status)
    found = {} if ended_at is None else {"batches.duration": (ended_at - batch.created_at) * 1000.0}
    return found | ({"batches.gpu_time": batch.progress.gpu_seconds * 1000} if batch.progress.gpu_seconds else {})


def _tokens(batch: Batch) -> tuple[int, int]:
    if batch.progress.rows_total:
        return batch.progress.prompt_tokens, batch.progress.completion_tokens
    return (batch.usage.input_tokens, batch.usage.output_tokens) if batch.usage else (0, 0)


def _tags(batch: Batch, ti: Any) -> dict[str, str]:
    # From Airflow 3.3 on a task instance says its tags itself, and in a multi-team Airflow the team is one.
    own = getattr(ti, "stats_tags", None) or {"dag_id": ti.dag_id, "task_id": ti.task_id}
    return {**own, **({"model": batch.model} if batch.model else {})}


def _stats() -> Any:
    """What Airflow sends the metrics of its own tasks with: in another module before Airflow 3.2."""
    try:
        from airflow.sdk.observability.stats import Stats
    except ImportError:
        from airflow.stats import Stats
    return Stats
