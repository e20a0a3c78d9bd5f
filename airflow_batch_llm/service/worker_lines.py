"""The workers and the queue as pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from airflow_batch_llm.models import TOKENIZE
from airflow_batch_llm.page_wire import QueueLine, WorkerLine, WorkerList
from airflow_batch_llm.store.worker_load import Held, Load, Pace
from airflow_batch_llm.store.workers import ALIVE_SECONDS


def worker_list(load: Load) -> WorkerList:
    lines = [_worker(load, worker) for worker in load.workers]
    return WorkerList(at=load.at, workers=lines, queue=_queue(load, lines))


def _worker(load: Load, worker: Mapping[str, Any]) -> WorkerLine:
    held, pace = load.held.get(worker["id"], Held()), load.paces.get(worker["id"], Pace())
    served = load.serves.get(worker["id"], [])
    return WorkerLine(
        **{name: worker[name] for name in ("id", "name", "version", "registered_at", "last_seen_at")},
        state=_state(load, worker, held),
        models=sorted({model for model, _ in served}),
        endpoints=sorted({endpoint for _, endpoint in served} - {TOKENIZE}),
        chunks=held.chunks,
        rows_in_flight=held.rows,
        rows_per_second=round(pace.rows, 2),
        tokens_per_second=round(pace.tokens, 2),
        shared=worker["all_teams"],
    )


def _state(load: Load, worker: Mapping[str, Any], held: Held) -> Literal["working", "idle", "silent", "gone"]:
    if worker["gone"]:
        return "gone"
    if load.at - worker["last_seen_at"] > ALIVE_SECONDS:
        return "silent"
    return "working" if held.chunks else "idle"


def _queue(load: Load, lines: list[WorkerLine]) -> list[QueueLine]:
    there = {line.id for line in lines if line.state in ("working", "idle")}
    serving = [pair for worker_id, pairs in load.serves.items() if worker_id in there for pair in pairs]
    return [
        QueueLine(
            **{name: value for name, value in row._asdict().items() if name != "tokens_left"},
            tokens_left=int(row.tokens_left or 0),
            workers=serving.count((row.model, row.endpoint)),
        )
        for row in load.queue
    ]
