"""What travels between client and service on ``/v1``: OpenAI's Batch API, and what this service adds to it.

Times are whole seconds since 1970 (UTC), durations are seconds, as on OpenAI's wire.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from airflow_batch_llm.models import (
    GREATEST_PRIORITY,
    LEAST_PRIORITY,
    BatchStatus,
    CanaryState,
    PauseReason,
    RowStatus,
)

Role = Literal["system", "developer", "user", "assistant"]
"""The roles a template may use. vLLM answers 200 to a role that does not exist, so it is checked here."""

Constant = str | int | float | bool
Place = Annotated[str, StringConstraints(min_length=1)]
TableFormat = Literal["parquet", "jsonl", "csv"]
Compression = Literal["none", "gzip", "zstd"]
Reuse = Literal["auto", "never"]
OnChanged = Literal["fail", "resubmit"]

LEAST_EXPIRY_SECONDS: Final = 3_600
MOST_EXPIRY_SECONDS: Final = 30 * 86_400

MOST_CANARY_ROWS: Final = 10_000
"""They are judged in one piece, in memory."""

LEAST_UNWATCHED: Final = 120
"""Seconds; a batch that is watched is asked for at least once a minute."""
GREATEST_UNWATCHED: Final = 30 * 86_400

CompletionWindow = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,4}[mhd]$")]
"""How long a batch may take: a whole number of minutes, hours or days, such as ``30m``, ``24h`` or ``7d``."""

_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}


def window_seconds(window: str) -> int:
    """The length of a completion window."""
    return int(window[:-1]) * _SECONDS[window[-1]]


class Strict(BaseModel):
    """A body in which a field nobody knows is an error, so that a misspelt option is never ignored."""

    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    """One message of the conversation that every row becomes. ``content`` is a template over the row's columns."""

    role: Role
    content: str


class DatasetSpec(Strict):
    """A table to be worked through: which rows, as what messages, with which result where."""

    source: Place | Annotated[list[Place], Field(min_length=1)]
    """Where the rows are: a file, a folder (all tables below it), a pattern (``*``, ``**``, ``?``), or several of them;
    or ids of files that were uploaded with purpose ``dataset``. A place is a local path or ``file://`` URI below one of
    the service's data roots, or an ``s3://`` URI below one of its allowed prefixes; a relative path starts at the first
    data root. A table ends in .parquet, .jsonl or .csv, the latter two also compressed (.gz, .zst)."""
    target: Place | None = None
    """Where the result goes: a file; or a folder (which ends in ``/``), which gets a file for every source file. Only a
    dry run may do without."""
    format: TableFormat | None = None
    """Of the target. A file's ending says it as well; a folder is Parquet unless this says otherwise."""
    compression: Compression | None = None
    """Of the target. A file's ending says it too (``.csv.gz``). Parquet has zstd inside unless this says otherwise,
    the others are plain."""
    messages: list[Message] = []
    """For chat completions. Templates: ``{name}`` becomes that column's (or constant's) value, ``{{name}}`` writes
    ``{name}``, a brace around anything else stays as it is."""
    input: Annotated[str, StringConstraints(min_length=1)] | None = None
    """For embeddings, instead of ``messages``: a template for the text to embed."""
    constants: dict[str, Constant] = {}
    """Values for placeholders that are the same in every row."""
    passthrough: list[str] | None = None
    """The source columns that the target repeats, in the source's order; all of them unless given."""
    choices: Annotated[list[str], Field(min_length=2)] | None = None
    """The only answers allowed. The engine is held to them by constrained decoding."""
    output_schema: dict[str, Any] | None = None
    """A JSON Schema of an object that every answer is to be. Its properties become typed columns of the target."""
    parameters: dict[str, Any] = {}
    """Sampling parameters of the engine's chat completions (``max_tokens``, ``top_p``, ``seed`` …).
    ``temperature`` is 0 unless given."""
    quarantine: Place | None = None
    """Where a copy of the rows that failed goes (``llm_status`` is ``error`` or ``invalid_output``); the target has
    them all the same. One file in the target's format, with the target's columns. It is written with the target, also
    if no row has failed: then it has none."""
    overwrite: bool = False
    """Whether a target or a quarantine that exists may be replaced."""


class FileExpiry(Strict):
    """When a file goes: some time after it was made (for results: after they were written, not after the submit)."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_EXPIRY_SECONDS, le=MOST_EXPIRY_SECONDS)]


MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


AirflowId = Annotated[str, StringConstraints(min_length=1, max_length=250)]
"""As long as Airflow lets an id of a Dag, a task or a run be."""


class Origin(Strict):
    """Where in Airflow a batch comes from, so that pages show it there, to those who may see that Dag."""

    deployment: Name
    """The Airflow's name among those that share the service."""
    dag_id: AirflowId
    task_id: AirflowId
    run_id: AirflowId
    map_index: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    """Of a mapped task; -1 of any other."""


class BatchCreate(Strict):
    """The body of ``POST /v1/batches``: either ``input_file_id`` (OpenAI's) or ``dataset`` and ``model`` (ours)."""

    input_file_id: str | None = None
    """An uploaded request file, with ``endpoint`` and ``completion_window``."""
    endpoint: str | None = None
    """What the requests are for. A table is for chat completions, so it need not say."""
    completion_window: CompletionWindow | None = None
    """What is not done by then is given up (``batch_expired``). A table has none unless it is given."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    """Shown with the batch. Two submits with one ``idempotency_key`` here *and* one content are one batch."""
    output_expires_after: FileExpiry | None = None

    dataset: DatasetSpec | None = None
    model: Name | None = None
    key: Name | None = None
    """Chosen by the client: submitting twice with one key gives one living batch. The header ``Idempotency-Key`` is
    the same."""
    on_changed: OnChanged = "fail"
    """Where the key has a batch that lives or completed, of another spec or from a source that has changed since:
    ``fail`` refuses this one (409), ``resubmit`` cancels that one, if it lives, and opens a new generation."""
    series: Name | None = None
    """What successive batches have in common that replace one another (in Airflow: the task instance).
    A new batch cancels the living ones of its series and may overwrite the targets that they wrote."""
    group: Name | None = None
    """What batches have in common that somebody looks at together (in Airflow: the Dag run). It has no effect."""
    origin: Origin | None = None
    """Where in Airflow it comes from. It has no effect."""
    holder: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    """Who may cancel the batch from now on: a later submit with the same key takes this over."""
    priority: Annotated[int, Field(ge=LEAST_PRIORITY, le=GREATEST_PRIORITY)] = 0
    """Higher goes first, strictly. Within a priority the earlier deadline does; a batch with a quarter of its time left
    counts as one of 1000."""
    fair_group: Name | None = None
    """What shares one turn among equals of the team (in Airflow: the Dag): the groups take turns, a chunk each, however
    many batches or rows they have. The ``series`` unless given, and without one each batch is a group of its own."""
    reuse: Reuse = "auto"
    """Whether a table's row may get the answer of an equal row, of this batch or an earlier one, where the answer is
    determined. ``never`` asks for every row."""
    dry_run: bool = False
    """Of a table: only plan it and say what it would cost (``estimate``). Nothing is run but a sample that is
    tokenized, and no target is written."""
    canary_rows: Annotated[int, Field(ge=1, le=MOST_CANARY_ROWS)] | None = None
    """Of a table: how many of its first rows are run before the others. When they are done the batch is paused
    (``paused`` is ``canary``), until it is resumed: whoever judges them does that, or cancels it. A table without other
    rows to ask is not paused."""
    pause_unwatched_after: Annotated[int, Field(ge=LEAST_UNWATCHED, le=GREATEST_UNWATCHED)] | None = None
    """Of a batch with a ``holder``: for how many seconds nobody may watch it before it is paused (``paused`` is
    ``unwatched``), until somebody does. Whoever asks for it by its id watches it, and whoever waits for its changes."""
    deadline: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    """A time by which the batch must be done; the earlier of this and ``completion_window`` counts."""


OPENAI_CREATE_FIELDS: Final = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)
"""What OpenAI's own API takes of the above, and what a service without extensions takes."""


Person = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class BatchAct(Strict):
    """The (optional) body of ``POST /v1/batches/{id}/retry`` and ``/pause``."""

    by: Person | None = None
    """Who asks, as the pages are to show it; else the name of the token is shown."""


class BatchCancel(BatchAct):
    """The (optional) body of ``POST /v1/batches/{id}/cancel``."""

    holder: str | None = None
    """If given, the cancel counts only while this is the batch's holder."""


class BatchResume(BatchAct):
    """The (optional) body of ``POST /v1/batches/{id}/resume``."""

    reason: PauseReason | None = None
    """If given, the batch goes on only if it is paused for that."""


class BatchError(BaseModel):
    """One thing that is wrong with a batch's input."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Rows of the batch: all, answered, and failed (``invalid_output`` counts as failed)."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class Usage(BaseModel):
    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class Progress(BaseModel):
    """How far a batch is. ``eta_seconds`` is null while there is no rate to go by."""

    rows_total: int = 0
    rows_done: int = 0
    """Rows with a committed result, failed ones included."""
    rows_failed: int = 0
    rows_duplicate: int = 0
    """Rows of a table that get the answer of an equal row of this batch."""
    rows_reused: int = 0
    """Rows of a table that got the answer of an equal row of an earlier batch."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_second: float | None = None
    """Prompt and completion tokens over the last minute of commits."""
    rows_per_second: float | None = None
    eta_seconds: float | None = None
    chunks_total: int = 0
    chunks_done: int = 0
    gpu_seconds: float = 0.0
    waiting_for: str | None = None
    """One sentence where nothing moves (no worker serves the model, the target cannot be written …)."""


class Estimate(BaseModel):
    """What a table would take, from a plan of all its rows and a tokenized sample of them."""

    rows: int
    rows_faulty: int
    """Rows that cannot be asked."""
    rows_duplicate: int
    rows_reused: int
    rows_asked: int
    """Rows that the engine would be asked."""
    prompt_tokens: int
    """Of the rows to ask."""
    tokens_from: Literal["tokenized sample", "characters"]
    """Whether an engine counted the tokens of a sample, or there is none and four characters are taken for one."""
    sample_rows: int = 0
    completion_tokens: int
    """Of the rows to ask: as many a row as answers under the same spec have taken, or else the limit that is set."""
    gpu_seconds: float | None = None
    """At the rate at which the model's workers have worked so far; null where they have not."""
    cost: float | None = None
    """The GPU time at the price that the service is told (``--gpu-hour-price``); null where it is not."""


class Batch(BaseModel):
    """OpenAI's batch object with the fields that this service adds after ``usage``.

    Also what a client makes of another server's object, where the added fields have their defaults.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str | None = None
    completion_window: str | None = None
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    usage: Usage | None = None

    dataset: DatasetSpec | None = None
    key: str | None = None
    series: str | None = None
    group: str | None = None
    origin: Origin | None = None
    generation: int = 1
    holder: str | None = None
    team: str | None = None
    priority: int = 0
    fair_group: str | None = None
    reuse: Reuse = "auto"
    dry_run: bool = False
    paused: PauseReason | None = None
    """Who paused the batch, while it is paused: no worker gets more of it then."""
    pause_unwatched_after: int | None = None
    """Seconds that nobody watches it after which it is paused."""
    canary_rows: int | None = None
    canary: CanaryState | None = None
    """Whether the other rows still wait for the verdict on the first ones, or those have passed; null where none
    wait."""
    estimate: Estimate | None = None
    """Of a dry run that completed."""
    deadline: int | None = None
    progress: Progress = Progress()
    manifest: Manifest | None = None
    """Set once a table's target stands."""

    @field_validator("output_file_id", "error_file_id", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        """Some servers say an empty text where there is no file."""
        return value or None

    @field_validator("request_counts", mode="before")
    @classmethod
    def _zero_if_null(cls, value: Any) -> Any:
        """OpenAI's own object may have none yet."""
        return {} if value is None else value


class TargetFile(BaseModel):
    uri: str
    rows: int
    bytes: int
    sha256: str


FOLDER_MANIFEST: Final = "_manifest.json"
"""The name of the manifest in a target that is a folder."""


class Manifest(BaseModel):
    """What a batch left behind: which files are its target, and counts that add up.

    Written after the target stands: beside a file as ``<file>.manifest.json``, in a folder as ``_manifest.json``.
    """

    schema_version: Literal[1] = 1
    batch_id: str
    team: str | None = None
    """Whose it is: another team's batch under the same key is another one."""
    key: str | None = None
    series: str | None = None
    generation: int = 1
    status: BatchStatus
    model: str
    engine_identity: str | None = None
    source: str | list[str]
    format: str
    folder: str | None = None
    """The folder that the files are below, where the target is one."""
    files: list[TargetFile]
    quarantine: TargetFile | None = None
    """The file with a copy of the rows that failed, where the batch has one."""
    rows: int
    counts: dict[str, int]
    """Rows by ``llm_status``; the values add up to ``rows``."""
    failures: dict[str, int] = {}
    """Rows that are not ``success`` by the code that their ``llm_error`` begins with."""
    rows_duplicate: int = 0
    rows_reused: int = 0
    prompt_tokens: int
    completion_tokens: int
    gpu_seconds: float
    created_at: int
    finished_at: int

    @property
    def uri(self) -> str:
        """Where it stands itself."""
        return f"{self.folder}/{FOLDER_MANIFEST}" if self.folder else f"{self.files[0].uri}.manifest.json"


OPENAI_BATCH_FIELDS: Final = frozenset(list(Batch.model_fields)[: list(Batch.model_fields).index("usage") + 1])
"""What a service without extensions shows of a batch."""


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


MOST_WATCHED: Final = 10_000
"""Most batches of one call of ``POST /v1/batches/watch``."""
MOST_CHANGED: Final = 500
"""Most batches of one answer to it, which holds them all in memory."""
MOST_WAIT_SECONDS: Final = 60
"""Longest wait of one such call."""

BATCH_ID: Final = r"^[A-Za-z0-9_-]{1,64}$"
BatchId = Annotated[str, StringConstraints(pattern=BATCH_ID)]
Version = Annotated[str, StringConstraints(max_length=64)]


class BatchWatch(Strict):
    """The body of ``POST /v1/batches/watch``."""

    batches: Annotated[dict[BatchId, Version | None], Field(max_length=MOST_WATCHED)]
    """The version of each batch that the client saw last; null for one that it never saw."""
    wait: Annotated[float, Field(ge=0, le=MOST_WAIT_SECONDS, allow_inf_nan=False)] = 0
    """How many seconds to wait for a change where there is none yet."""
    changes: Literal["all", "status"] = "all"
    """What counts as a change: everything, or a new status alone."""


class ChangedBatch(BaseModel):
    """A batch and the version that it was read in."""

    version: str
    batch: Batch


class BatchChangeList(BaseModel):
    """What differs from what the client saw; nothing where the wait ended first.

    With ``has_more``, other batches differ too and come with the next call; ended batches come first.
    """

    changed: list[ChangedBatch]
    gone: list[str]
    """The batches that there are not, or not for this team."""
    has_more: bool = False


class BatchDeleted(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    deleted: Literal[True] = True


class ResultRow(BaseModel):
    """What became of one row: for a table its columns, for a request file its line of the output or error file."""

    model_config = ConfigDict(hide_input_in_errors=True)

    row: int
    """The row's number in the source, from 0."""
    status: RowStatus
    columns: dict[str, Any] | None = None
    """Of a table: the target's row; while the batch runs, its ``llm_…`` columns alone."""
    custom_id: str | None = None
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class ResultPage(BaseModel):
    """One page of results; ``last_id`` is the cursor for ``after`` of the next one."""

    object: Literal["list"] = "list"
    data: list[ResultRow]
    last_id: str | None = None
    has_more: bool = False


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    """Deprecated by OpenAI, and there for clients that still look at it."""
    status_details: str | None = None
    expires_at: int | None = None


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that a living worker serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "batch-llm"
    endpoints: list[str]
    workers: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """What ``GET /healthz`` says: which service this is, and whether it takes more than OpenAI's API has."""

    status: Literal["ok"] = "ok"
    service: Literal["airflow-batch-llm"] = "airflow-batch-llm"
    version: str
    extensions: bool


class Problem(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ProblemBody(BaseModel):
    """The body of every refusal."""

    error: Problem
