"""What the pages ask of the service, on ``/v1`` too: lists of batches, one batch's story, rows to look at, workers.

Times are seconds since 1970 (UTC), durations are seconds, shares are between 0 and 1.
No call of these is a look at a batch: a person who reads a page keeps no batch going that nobody waits for.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from airflow_batch_llm.models import BatchStatus, CanaryState, PauseReason, RowStatus, Scope
from airflow_batch_llm.wire import Batch, BatchId, Name, Origin, Strict, Version

MOST_LINES: Final = 200
"""Most batches of one page of the list."""
MOST_PAGE_WAIT: Final = 25.0
"""Longest wait of a page for a change, below the half minute after which proxies give up."""
MOST_BUCKETS: Final = 120
"""Most points of a chart."""
MOST_SHOWN_ROWS: Final = 50
MOST_TROUBLES: Final = 50
MOST_ACTS: Final = 50
MOST_GENERATIONS: Final = 100

SearchText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
WaitSeconds = Annotated[float, Field(ge=0, le=MOST_PAGE_WAIT, allow_inf_nan=False)]


class OverviewQuery(Strict):
    """The body of ``POST /v1/batches/overview``: which batches, and what the caller has seen of them."""

    status: Annotated[list[BatchStatus | Literal["paused"]], Field(max_length=16)] | None = None
    """``paused`` are those in progress that are paused; ``in_progress`` are the others."""
    models: Annotated[list[Name], Field(max_length=100)] | None = None
    dag_ids: Annotated[list[Name], Field(max_length=100)] | None = None
    task_id: Name | None = None
    run_id: Name | None = None
    map_index: int | None = None
    search: SearchText | None = None
    """Part of an id, key, Dag, task, run, model or target, in whatever case."""
    visible_dag_ids: Annotated[list[Name], Field(max_length=20_000)] | None = None
    """The Dags that the person may see, where that is not all: nothing of any other Dag, nor of none, counts."""
    visible_deployments: Annotated[list[Name], Field(max_length=10)] | None = None
    """Under which names the Airflow stands whose Dags those are: nothing of another Airflow counts."""
    batch_ids: Annotated[list[BatchId], Field(max_length=MOST_LINES)] | None = None
    order: Literal["newest", "priority"] = "newest"
    """``priority``: those that have not ended first, as the pool takes them."""
    offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    limit: Annotated[int, Field(ge=1, le=MOST_LINES)] = 50
    version: Version | None = None
    """Of the answer that the caller has; with it the call can wait."""
    wait: WaitSeconds = 0.0
    """How many seconds to wait for another answer than that one."""


class LineProgress(BaseModel):
    rows_total: int
    rows_done: int
    rows_failed: int
    rows_reused: int
    rows_duplicate: int
    tokens_per_second: float | None = None
    rows_per_second: float | None = None
    eta_seconds: float | None = None
    waiting_for: str | None = None


class BatchLine(BaseModel):
    """What a list shows of a batch."""

    id: str
    status: BatchStatus
    paused: PauseReason | None = None
    canary: CanaryState | None = None
    origin: Origin | None = None
    model: str | None = None
    endpoint: str
    team: str
    generation: int
    priority: int
    dry_run: bool = False
    created_at: int
    ended_at: int | None = None
    expires_at: int | None = None
    target: str | None = None
    """Of a table, where its result goes."""
    progress: LineProgress


class Overview(BaseModel):
    """One page of the list. Where nothing changed until the wait ended, ``data`` is null and the rest as it was."""

    version: str
    at: float
    """The service's clock, so that ages do not depend on the browser's."""
    data: list[BatchLine] | None = None
    total: int = 0
    """Batches that fit the filters, on all pages."""
    statuses: dict[str, int] = {}
    """How many there are by status, under all filters but that of the status."""
    models: list[str] = []
    """What there is to filter by."""
    dag_ids: list[str] = []
    teams: list[str] = []
    """Empty unless the token may see other teams than its own."""


class Phase(BaseModel):
    """A stretch of a batch's life. The last one of a batch that has not ended has no end."""

    name: Literal["planning", "waiting", "running", "assembling"]
    """``waiting`` is planned, with no row done yet."""
    started_at: float
    ended_at: float | None = None


class Bucket(BaseModel):
    """What was committed from ``at`` on, until the next bucket. Buckets without commits are left out."""

    at: float
    rows: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class Timeline(BaseModel):
    bucket_seconds: float
    buckets: list[Bucket]
    """At most 120, oldest first."""


class PlanNumbers(BaseModel):
    rows_total: int
    rows_duplicate: int
    rows_reused: int
    rows_asked: int
    """Rows for the engine. Of the others, those that are no duplicates had their result before the first commit: reused
    ones, those that cannot be asked, and those that an earlier generation did."""
    chunks_total: int
    chunks_done: int
    chunks_leased: int
    chunks_pending: int
    prefix_share: float | None = None
    """Of the prompt tokens so far, the share that the engine had in its prefix cache; null before there are any."""


class WorkerOnBatch(BaseModel):
    worker_id: str
    name: str
    chunks: int
    """Chunks of the batch that it holds now."""
    rows_done: int
    """Rows of the batch that it has done, in all its attempts."""
    rows_per_second: float | None = None
    """Of the batch, over the last minute of commits."""
    last_seen_at: float


class Trouble(BaseModel):
    """An attempt at a chunk that did not end well."""

    chunk: int
    attempt: int
    worker: str
    outcome: str
    detail: str | None = None
    claimed_at: float
    ended_at: float | None = None
    rows: int
    """Rows that it finished."""
    rows_lost: int
    """Rows that had to be asked again, as the worker says; 0 of a lost lease, of which nobody can say."""


class Attempts(BaseModel):
    total: int
    outcomes: dict[str, int]
    troubles: list[Trouble]
    """The newest ones, at most 50."""


class Cost(BaseModel):
    """What the batch has taken so far, beside the price of the same tokens at a synchronous API."""

    currency: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    gpu_seconds: float
    gpu_hour_price: float | None = None
    own: float | None = None
    """GPU time at its price; null where the service is told none."""
    api_input_price: float | None = None
    """Of a million prompt tokens."""
    api_output_price: float | None = None
    """Of a million answer tokens."""
    api: float | None = None
    saving: float | None = None
    """The share of the API's price that is saved; negative where the own hardware is dearer."""


class Act(BaseModel):
    """What somebody did with a batch."""

    at: float
    act: Literal["submit", "cancel", "retry", "pause", "resume"]
    by: str
    """The person, as the caller names it, or else the name of the token."""


class GenerationLine(BaseModel):
    id: str
    generation: int
    status: BatchStatus
    created_at: int


class BatchReport(BaseModel):
    """One batch with all that a page tells of it. Where nothing changed until the wait ended, ``batch`` is null and
    everything else but ``version``, ``at`` and ``may_act`` with it."""

    version: str
    at: float
    batch: Batch | None = None
    may_act: bool = True
    """Whether the caller may cancel, retry, pause and resume it."""
    phases: list[Phase] = []
    timeline: Timeline | None = None
    plan: PlanNumbers | None = None
    workers: list[WorkerOnBatch] = []
    attempts: Attempts | None = None
    cost: Cost | None = None
    acts: list[Act] = []
    """The newest first, at most 50."""
    generations: list[GenerationLine] = []
    """Those under the batch's key, the newest first, at most 100; empty where there is this one alone."""


class ShownMessage(BaseModel):
    role: str
    content: str


class ShownRow(BaseModel):
    """One row to look at: what the source has, what the engine was asked, what it answered."""

    model_config = ConfigDict(hide_input_in_errors=True)

    row: int
    """The row's number in the source, from 0."""
    status: RowStatus
    input: dict[str, Any] | None = None
    """The source's columns; null where they cannot be had quickly (``missing`` says why)."""
    prompt: list[ShownMessage] | None = None
    """The rendered messages; of an embedding one with the role ``input``."""
    output: Any = None
    """The answer's text, list of samples or typed fields; of an embedding its first numbers."""
    label: str | None = None
    """Of a batch with choices, the one that was answered; of one with a schema, the value that ``/answers`` counts."""
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    shortened: bool = False
    """Whether a text above was cut, because it is very long."""
    missing: str | None = None
    """One sentence on what is not shown."""


class ShownRows(BaseModel):
    """One page of rows; ``last_id`` is the cursor for ``after`` of the next one."""

    data: list[ShownRow]
    last_id: str | None = None
    has_more: bool = False
    looked_at: int
    """Rows that were looked through for this page: a filter gives up after a bounded number, and the next page goes on
    from there."""
    order: Literal["committed", "source"]


class AnswerCount(BaseModel):
    answer: str
    rows: int


class Answers(BaseModel):
    """How often which answer was given."""

    field: str | None = None
    """The output column that is counted: ``llm_output``, or the first field of a schema with few values; null where the
    answers are free text, and nothing is counted."""
    counts: list[AnswerCount] = []
    """The commonest first."""
    rows_looked_at: int = 0
    """Rows with an answer that was counted: the shares are of these."""
    rows_failed: int = 0
    """Rows that were looked at besides, and have no answer."""
    rows_done: int = 0
    """Rows that have a result. Where it is more than the two numbers above together, the counts are of a sample, evenly
    spread, or ``distinct``."""
    distinct: bool = False
    """Whether equal rows were counted once, as they are asked. They count as the rows that they are once the batch has
    ended, if its target is of Parquet."""


class WorkerLine(BaseModel):
    id: str
    name: str
    version: str
    state: Literal["working", "idle", "silent", "gone"]
    """``silent``: has not called for longer than its heartbeat allows; ``gone``: took its leave or was replaced."""
    models: list[str]
    endpoints: list[str]
    registered_at: float
    last_seen_at: float
    chunks: int
    """Chunks that it holds now."""
    rows_in_flight: int
    """Rows of these that are not done."""
    rows_per_second: float
    tokens_per_second: float
    """Over the last minute of commits."""
    shared: bool
    """Whether it works for all teams."""


class QueueLine(BaseModel):
    """What waits for a model."""

    model: str
    endpoint: str
    batches: int
    chunks_pending: int
    chunks_leased: int
    rows_left: int
    tokens_left: int
    """As the plan estimates them."""
    workers: int
    """That serve it now."""
    oldest_at: float | None = None
    """When the oldest batch that waits was submitted."""


class WorkerList(BaseModel):
    """``GET /v1/workers``: who is there or was in the last day, and what is to be done."""

    at: float
    workers: list[WorkerLine]
    queue: list[QueueLine]


class Whoami(BaseModel):
    """``GET /v1/whoami``: what the caller's token opens; behind Airflow, what Airflow lets the user do."""

    name: str
    team: str
    scopes: list[Scope]
    teams: list[str]
    """All teams, where the token may see them; else its own."""
    version: str


class AirflowWhoami(Whoami):
    """The same call in Airflow. A user there has no team of the service's."""

    connections: list[str]
    """The connections whose services the pages may ask (``?conn_id=``); the first is asked where none is named."""
    deployments: list[str] = []
    """The names under which batches of this Airflow stand at the service that is asked; empty where it has no name of
    its own there, or there is no such connection."""
