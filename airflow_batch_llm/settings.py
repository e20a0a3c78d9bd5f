"""What can be set, with its default and the reason for it. Durations are seconds, sizes bytes, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

DEFAULT_PORT: Final = 8765
TOKEN_FILE: Final = "token"  # noqa: S105 (the name of a file)
TOKEN_VARIABLE: Final = "BATCH_LLM_TOKEN"  # noqa: S105 (the name of a variable)
URL_VARIABLE: Final = "BATCH_LLM_URL"
WEBHOOK_URL_VARIABLE: Final = "BATCH_LLM_WEBHOOK_URL"
WEBHOOK_SECRET_VARIABLE: Final = "BATCH_LLM_WEBHOOK_SECRET"  # noqa: S105 (the name of a variable)
HOME_VARIABLE: Final = "BATCH_LLM_HOME"
DATABASE_URL_VARIABLE: Final = "BATCH_LLM_DATABASE_URL"


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """Where to tell that a batch has ended. ``secret`` signs (Standard Webhooks): ``whsec_`` and base64."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may ask of a service at most; None is no limit. OpenAI's own are in the comments."""

    file_bytes: int | None = None  # 200 MB
    file_rows: int | None = None  # 50,000
    embedding_inputs: int | None = None  # 50,000, over all rows of a file
    creates_per_hour: int | None = None  # 2,000, retries among them
    body_bytes: int = 16 << 20
    """Of a JSON body, which is held in memory."""
    part_bytes: int = 256 << 20
    """Of a worker's part, which is held in memory: many times what a worker sends."""
    spare_bytes: int = 1 << 30
    """What uploads leave free on the disk that holds the storage, for the store, the parts and the targets."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How one service runs. ``home`` holds its store, its storage and its token."""

    home: Path
    data_roots: tuple[Path, ...]
    """The local folders below which tables may be read and written."""
    data_prefixes: tuple[str, ...] = ()
    """The same on S3: ``s3://bucket`` or ``s3://bucket/folder``."""
    team_roots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folders and prefixes of single teams, which use these alone and none of the above."""
    storage_url: str | None = None
    """Where the service keeps its own bytes if not below ``home``: ``s3://bucket/folder``."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    database_url: str | None = field(default=None, repr=False)
    """Where the store is if not below ``home``: ``postgresql://user:password@host/database``."""

    lease_seconds: float = 30.0
    """How long a worker may be silent before its chunk is handed on: three missed heartbeats."""
    duty_lease_seconds: float = 30.0
    chunk_rows: int = 2_000
    """Most rows of a chunk: what a worker holds in memory, and what a claim after a crash reads again."""
    chunk_tokens: int = 500_000
    """Most tokens of a chunk, prompt and answer together: about a minute of an 8B model on one large GPU."""

    limits: Limits = Limits()
    file_seconds: int = 30 * 86_400
    """How long uploaded files are kept, and the results of request files, unless their maker says otherwise."""
    extensions: bool = True
    """Whether clients may use more than OpenAI's API has (tables, keys, results, retry, events)."""
    webhooks: tuple[WebhookSettings, ...] = ()
    reuse_seconds: int = 30 * 86_400
    """How long a table's answers may be used for equal rows of later batches, unless ``output_expires_after`` says."""
    gpu_hour_price: float | None = None
    """What an hour of a worker's engine costs, for estimates and reports, in whatever money its reader thinks in."""
    api_input_price: float | None = None
    """What a million prompt tokens cost at the API that reports compare with, in the same money."""
    api_output_price: float | None = None
    """The same for a million answer tokens."""
    currency: str = "USD"
    """What reports call that money."""
    keep_seconds: int = 30 * 86_400
    """How long what a batch stored is kept after its end: for its results, and for a retry to go on from."""
    record_seconds: int = 365 * 86_400
    """How long the record of an ended batch is kept: its spec, its counts, and that its key was used."""
    grace_seconds: int = 86_400
    """How long nothing is cleaned away that no record names (yet) or that somebody may be reading still."""
    scratch: Path | None = None
    """Where the service's processes put their temporary files if not below ``home``: a large and fast disk."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        values = json.loads(content)
        values["home"] = Path(values["home"])
        values["data_roots"] = tuple(Path(root) for root in values["data_roots"])
        values["data_prefixes"] = tuple(values["data_prefixes"])
        values["team_roots"] = {team: tuple(roots) for team, roots in values["team_roots"].items()}
        values["limits"] = Limits(**values["limits"])
        values["scratch"] = Path(values["scratch"]) if values["scratch"] else None
        values["webhooks"] = tuple(WebhookSettings(**webhook) for webhook in values["webhooks"])
        return cls(**values)

    @property
    def all_roots(self) -> list[str]:
        """The data roots as they are given on the command line."""
        return [*map(str, self.data_roots), *self.data_prefixes]

    @property
    def store_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'store.sqlite'}"

    @property
    def storage_root(self) -> Path:
        return self.home / "storage"

    @property
    def scratch_root(self) -> Path:
        return self.scratch or self.home / "scratch"

    @property
    def token_path(self) -> Path:
        return self.home / TOKEN_FILE


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Which engine a worker drives: one it starts itself (``endpoint`` is None), or one that runs already."""

    model: str
    """A local path or a model name, as ``vllm serve`` takes it."""
    served_model_name: str
    """What batches call it."""
    endpoint: str | None = None
    command: tuple[str, ...] = ("vllm",)
    arguments: tuple[str, ...] = ()
    max_num_seqs: int = 256
    """How many rows the engine works on at once; the worker keeps twice as many in flight."""
    start_timeout: float = 1800.0
    """A model of hundreds of gigabytes takes long to load and compile."""
    stall_seconds: float = 600.0
    """How long an engine that the worker started may hold rows without an answer or a token before it is replaced."""
    row_timeout: float = 3600.0
    """How long one answer may take before the connection is given up."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How one worker runs. ``home`` holds its socket and the log of its engine."""

    url: str
    token: str = field(repr=False)
    name: str
    home: Path
    engine: EngineSettings
    flush_seconds: float = 2.0
    """How often finished rows are stored and committed: the most that a crash of the worker can cost."""
    claim_seconds: float = 1.0
    """How long an idle worker waits before it asks for work again."""
    drain_seconds: float = 20.0
    """How long rows in flight may still finish after SIGTERM before the rest is given back."""
