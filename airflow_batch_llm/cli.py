"""The command ``batch-llm``: runs the parts, and talks to a service that runs."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from airflow_batch_llm import __version__, clock
from airflow_batch_llm.client.batch_client import DEFAULT_URL, BatchClient
from airflow_batch_llm.client.watch import estimate_lines, raise_unless_completed, rows_so_far
from airflow_batch_llm.errors import BatchEndedError, BatchFailedError, BatchLLMError, NoAnswerError
from airflow_batch_llm.models import EMBEDDINGS, RowStatus
from airflow_batch_llm.settings import (
    DEFAULT_PORT,
    HOME_VARIABLE,
    TOKEN_FILE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    WEBHOOK_SECRET_VARIABLE,
    WEBHOOK_URL_VARIABLE,
    EngineSettings,
    Limits,
    ServiceSettings,
    WebhookSettings,
    WorkerSettings,
)
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message

app: Final = typer.Typer(
    name="batch-llm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLM steps over tables, on your own GPUs.",
)
out: Final = Console()
err: Final = Console(stderr=True)

WATCH_SECONDS: Final = 1.0
DEFAULT_HOME: Final = Path("~/.batch-llm")

Home = Annotated[Path, typer.Option(envvar=HOME_VARIABLE, help="Where state, bytes and the token are kept.")]
DataRoot = Annotated[
    list[str] | None,
    typer.Option(
        "--data-root",
        help="Tables may be read and written below here only: a folder, or s3://bucket/folder. Repeatable. "
        "[default: .]",
    ),
]
ModelOption = Annotated[str, typer.Option(help="A model's local path, or its name as `vllm serve` takes it.")]
ServedName = Annotated[str | None, typer.Option(help="What batches call the model. [default: the same as --model]")]
VllmCommand = Annotated[
    str, typer.Option("--vllm", envvar="BATCH_LLM_VLLM", help="The vllm command, for instance of another environment.")
]
EngineArguments = Annotated[str, typer.Option(help="More arguments for `vllm serve`, as one string.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Rows that the engine works on at once.")]
Url = Annotated[str, typer.Option(envvar=URL_VARIABLE, help="The service's address.")]
Most = Annotated[int | None, typer.Option(min=1, help="Refuse what is above this. [default: no limit]")]
BatchId = Annotated[str, typer.Argument(help="The batch's id.")]
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="The rows: a file (.parquet, .jsonl, .csv; the latter two also .gz or .zst), a folder ending in /, or a "
        "pattern in quotes."
    ),
]
MoreSources = Annotated[list[str] | None, typer.Option("--source", help="A further source. Repeatable.")]
Model = Annotated[str, typer.Option(help="What the model is called.")]
Prompt = Annotated[str, typer.Option(help="The template: {name} is replaced by that column.")]
System = Annotated[str | None, typer.Option(help="A template for the system message.")]
Choice = Annotated[list[str] | None, typer.Option(help="One of the only answers allowed. Repeatable.")]
OutputSchema = Annotated[
    Path | None, typer.Option(help="A file with the JSON Schema of the object that every answer is to be.")
]
Embed = Annotated[bool, typer.Option("--embed", help="Embed the prompt's text instead of answering it.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of one answer.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="Of a target folder: parquet, jsonl or csv. [default: parquet]")
]
CompressionOption = Annotated[str | None, typer.Option(help="Of a target folder's files: none, gzip or zstd.")]
ReuseOption = Annotated[str, typer.Option(help="Whether equal rows share an answer: auto or never.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")]


@app.command()
def serve(
    home: Home = DEFAULT_HOME,
    data_root: DataRoot = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = DEFAULT_PORT,
    max_file_bytes: Most = None,
    max_file_rows: Most = None,
    max_embedding_inputs: Most = None,
    max_creates_per_hour: Most = None,
    extensions: Annotated[
        bool, typer.Option(help="Whether clients may use more than OpenAI's API has: tables, keys, results, retry.")
    ] = True,
    storage: Annotated[
        str | None, typer.Option(help="Where the service's own bytes go: s3://bucket/folder. [default: below --home]")
    ] = None,
    reuse_days: Annotated[
        int, typer.Option(min=0, help="How long a table's answers may be used for equal rows of later tables.")
    ] = 30,
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="What an hour of a worker's engine costs, for estimates.")
    ] = None,
    webhook_url: Annotated[
        str | None, typer.Option(envvar=WEBHOOK_URL_VARIABLE, help="Told when a batch ends.")
    ] = None,
) -> None:
    """Run the service: the HTTP API, planning and assembling.

    The webhook's calls are signed (Standard Webhooks) with the secret in BATCH_LLM_WEBHOOK_SECRET: `whsec_` and base64.
    """
    from airflow_batch_llm.service.app import serve as run

    _log_to_stderr()
    settings = ServiceSettings(
        home=_real(home),
        **_roots(data_root),
        storage_url=storage,
        reuse_seconds=reuse_days * 86_400,
        gpu_hour_price=gpu_hour_price,
        host=host,
        port=port,
        limits=Limits(
            file_bytes=max_file_bytes,
            file_rows=max_file_rows,
            embedding_inputs=max_embedding_inputs,
            creates_per_hour=max_creates_per_hour,
        ),
        extensions=extensions,
        webhooks=_webhooks(webhook_url),
    )
    with _explained():
        run(settings)


@app.command()
def work(
    model: ModelOption,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
    name: Annotated[
        str | None, typer.Option(help="A restarted worker of the same name takes its own chunks back at once.")
    ] = None,
    served_model_name: ServedName = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Use this OpenAI-compatible server instead of starting `vllm serve`.")
    ] = None,
    vllm: VllmCommand = "vllm",
    engine_args: EngineArguments = "",
    max_num_seqs: MaxNumSeqs = 256,
) -> None:
    """Run a worker: it starts and supervises `vllm serve`, and does chunks."""
    from airflow_batch_llm.worker.process import work as run

    _log_to_stderr()
    engine = _engine(model, served_model_name, endpoint, vllm, engine_args, max_num_seqs)
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    settings = WorkerSettings(
        url=url, token=_token(home), name=name, home=_real(home) / "workers" / name, engine=engine
    )
    with _explained():
        run(settings)


@app.command()
def up(
    model: ModelOption,
    home: Home = DEFAULT_HOME,
    data_root: DataRoot = None,
    port: Annotated[int, typer.Option(help="The service's port on this machine.")] = DEFAULT_PORT,
    served_model_name: ServedName = None,
    vllm: VllmCommand = "vllm",
    engine_args: EngineArguments = "",
    max_num_seqs: MaxNumSeqs = 256,
) -> None:
    """Run service and worker together on this machine, and start again what dies."""
    from airflow_batch_llm.embedded import Embedded

    _log_to_stderr()
    embedded = Embedded(
        service=ServiceSettings(home=_real(home), **_roots(data_root), port=port),
        engine=_engine(model, served_model_name, None, vllm, engine_args, max_num_seqs),
    )
    err.print(
        f"service  http://127.0.0.1:{port}   data root {', '.join(embedded.service.all_roots)}\n"
        f"token    {embedded.service.token_path} (readable by you only)\n"
        f"model    {embedded.engine.served_model_name}   (its engine takes a while to start)",
        highlight=False,
    )
    embedded.run()


@app.command()
def submit(
    source: SourceArgument,
    target: Annotated[str, typer.Argument(help="Where the result goes: a file, or a folder ending in /.")],
    model: Model,
    prompt: Prompt,
    system: System = None,
    choice: Choice = None,
    output_schema: OutputSchema = None,
    embed: Embed = False,
    max_tokens: MaxTokens = None,
    more: MoreSources = None,
    table_format: FormatOption = None,
    compression: CompressionOption = None,
    reuse: ReuseOption = "auto",
    key: Annotated[str | None, typer.Option(help="Submitting twice with one key gives one batch.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    overwrite: Overwrite = False,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """Submit a table; prints the batch's id."""
    asked = Asked(prompt, system, choice, output_schema, embed, max_tokens)
    spec = asked.spec(
        [source, *(more or [])], target, format=table_format, compression=compression, overwrite=overwrite
    )
    create = _create(dataset=spec, model=model, endpoint=asked.endpoint, key=key, priority=priority, reuse=reuse)
    with _client(url, home) as client:
        batch = client.submit(create)
    out.print(batch.id, highlight=False)
    if batch.progress.waiting_for:
        err.print(batch.progress.waiting_for, markup=False, highlight=False, soft_wrap=True)


@app.command()
def estimate(
    source: SourceArgument,
    model: Model,
    prompt: Prompt,
    target: Annotated[str | None, typer.Argument(help="Where a result would go. It is not written.")] = None,
    system: System = None,
    choice: Choice = None,
    output_schema: OutputSchema = None,
    embed: Embed = False,
    max_tokens: MaxTokens = None,
    more: MoreSources = None,
    table_format: FormatOption = None,
    compression: CompressionOption = None,
    reuse: ReuseOption = "auto",
    key: Annotated[str | None, typer.Option(help="Asking twice with one key gives one estimate.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say what a table would take: rows, tokens, time. Takes what `submit` takes, runs no rows, writes no target."""
    asked = Asked(prompt, system, choice, output_schema, embed, max_tokens)
    spec = asked.spec(
        [source, *(more or [])], target, format=table_format, compression=compression, overwrite=overwrite
    )
    asked_for = {"dataset": spec, "model": model, "endpoint": asked.endpoint}
    create = _create(**asked_for, key=key, priority=priority, reuse=reuse, dry_run=True)
    with _client(url, home) as client:
        batch = client.submit(create)
        while not batch.status.ended:
            time.sleep(WATCH_SECONDS)
            batch = _look(client, batch.id) or batch
    raise_unless_completed(batch)
    if batch.estimate is None:
        raise BatchFailedError(f"Batch {batch.id} completed without an estimate.", batch_id=batch.id)
    if as_json:
        out.print_json(batch.estimate.model_dump_json())
        return
    table = Table("what", Column("how much", justify="right"))
    for line in estimate_lines(batch.estimate):
        table.add_row(*line)
    out.print(table)


@app.command()
def status(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Show one batch."""
    with _client(url, home) as client:
        batch = client.get(batch_id)
    out.print_json(batch.model_dump_json(exclude_none=True))


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """List the newest batches. Rows that are spared got the answer of an equal row, of that batch or an earlier one."""
    with _client(url, home) as client:
        page = client.list(limit=limit)
    table = Table(Column("batch", no_wrap=True), "status", "model", "rows", "failed", "spared", "created (UTC)")
    for batch in page.data:
        total, done, failed = rows_so_far(batch)
        table.add_row(
            batch.id,
            batch.status,
            batch.model,
            f"{done:,}/{total:,}",
            f"{failed:,}",
            f"{batch.progress.rows_duplicate + batch.progress.rows_reused:,}",
            f"{clock.from_unix(batch.created_at):%Y-%m-%d %H:%M:%S}",
        )
    out.print(table)


@app.command()
def watch(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Follow a batch to its end: rows, tokens a second, time to go."""
    with _client(url, home) as client, _bar() as bar:
        line = bar.add_task("", total=None, rate="", eta="")
        while True:
            batch = _look(client, batch_id)
            if batch is not None:
                _draw(bar, line, batch)
                if batch.status.ended:
                    break
            time.sleep(WATCH_SECONDS)
    raise_unless_completed(batch)
    err.print(
        f"{batch.request_counts.completed:,} rows answered, {batch.request_counts.failed:,} failed{_spared(batch)}"
    )


@app.command()
def results(
    batch_id: BatchId,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    status: Annotated[RowStatus | None, typer.Option(help="Only rows of this status.")] = None,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print a batch's rows as JSON lines: in source order, or, while it runs, those that are done."""
    with _client(url, home) as client:
        for row in client.results(batch_id, limit=limit, status=status):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


@app.command()
def cancel(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """End a batch; what was done of it is kept."""
    with _client(url, home) as client:
        batch = client.cancel(batch_id)
    out.print(f"{batch.id} is {batch.status}", highlight=False)


@app.command()
def retry(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Do the rows again that failed, expired or were cancelled; prints the new batch's id."""
    with _client(url, home) as client:
        batch = client.retry(batch_id)
    out.print(batch.id, highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


def main() -> NoReturn:
    """Runs a command; a refusal is a sentence and exit code 1, never a traceback."""
    with _explained():
        app()
    sys.exit(0)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BatchLLMError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, BatchEndedError) else 1)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        err.print(f"{place}: {first['msg']}. Nothing was sent.", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@dataclass(frozen=True)
class Asked:
    """What the options say is asked of each row."""

    prompt: str
    system: str | None
    choices: list[str] | None
    output_schema: Path | None
    embed: bool
    max_tokens: int | None

    @property
    def endpoint(self) -> str | None:
        return EMBEDDINGS if self.embed else None

    def spec(self, sources: list[str], target: str | None, **more: Any) -> DatasetSpec:
        places = [_absolute(source) for source in sources]
        named = {} if target is None else {"target": _absolute(target)}
        return DatasetSpec.model_validate(
            {"source": places[0] if len(places) == 1 else places, **named, **self._each(), **more}
        )

    def _each(self) -> dict[str, Any]:
        chat = {
            "--system": self.system,
            "--choice": self.choices,
            "--output-schema": self.output_schema,
            "--max-tokens": self.max_tokens,
        }
        if self.embed:
            given = [name for name, value in chat.items() if value]
            if given:
                raise typer.BadParameter(f"{given[0]} does not go with --embed: a vector is no text.")
            return {"input": self.prompt}
        messages = [Message(role="system", content=self.system)] if self.system else []
        return {
            "messages": [*messages, Message(role="user", content=self.prompt)],
            "choices": self.choices or None,
            "output_schema": None if self.output_schema is None else _schema(self.output_schema),
            "parameters": {} if self.max_tokens is None else {"max_tokens": self.max_tokens},
        }


def _schema(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"The schema {path} cannot be read: {error}.") from error


def _create(**fields: Any) -> BatchCreate:
    return BatchCreate.model_validate(fields)


def _client(url: str, home: Path) -> BatchClient:
    return BatchClient(url, _token(home))


def _token(home: Path) -> str:
    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        return token
    path = _real(home) / TOKEN_FILE
    try:
        return path.read_text().strip()
    except OSError as error:
        raise typer.BadParameter(
            f"There is no token: {TOKEN_VARIABLE} is not set and {path} cannot be read ({error.strerror}). "
            "The service writes it at its first start."
        ) from error


def _engine(
    model: str, served: str | None, endpoint: str | None, vllm: str, arguments: str, max_num_seqs: int
) -> EngineSettings:
    import shlex

    return EngineSettings(
        model=model,
        served_model_name=served or model,
        endpoint=endpoint,
        command=tuple(shlex.split(vllm)),
        arguments=tuple(shlex.split(arguments)),
        max_num_seqs=max_num_seqs,
    )


def _real(path: Path) -> Path:
    return path.expanduser().resolve()


def _roots(given: list[str] | None) -> dict[str, Any]:
    """The data roots as settings: local folders, and prefixes on S3."""
    prefixes = tuple(root for root in given or () if root.startswith("s3://"))
    roots = tuple(_real(Path(root)) for root in given or ["."] if not root.startswith("s3://"))
    for root in roots:
        if not root.is_dir():
            raise typer.BadParameter(f"The data root {root} is not a folder.")
    return {"data_roots": roots, "data_prefixes": prefixes}


def _webhooks(url: str | None) -> tuple[WebhookSettings, ...]:
    if url is None:
        return ()
    secret = os.environ.get(WEBHOOK_SECRET_VARIABLE)
    if not secret:
        raise typer.BadParameter(f"A webhook needs a secret to sign with: set {WEBHOOK_SECRET_VARIABLE}.")
    return (WebhookSettings(url=url, secret=secret),)


def _absolute(place: str) -> str:
    """A local path as the service, which has another working directory, must be told it."""
    return place if "://" in place else f"{Path(place).absolute()}{'/' * place.endswith('/')}"


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _spared(batch: Batch) -> str:
    """How many rows did not need the engine; nothing where there were none."""
    progress = batch.progress
    counts = ((progress.rows_duplicate, "as equal rows of this batch"), (progress.rows_reused, "as rows before"))
    return "".join(f", {count:,} {how}" for count, how in counts if count)


def _look(client: BatchClient, batch_id: str) -> Batch | None:
    try:
        return client.get(batch_id)
    except NoAnswerError:
        return None


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        console=err,
    )


def _draw(bar: Progress, line: Any, batch: Batch) -> None:
    progress = batch.progress
    total, done, _ = rows_so_far(batch)
    rate = "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f} tokens/s"
    eta = "" if progress.eta_seconds is None else f"ETA {progress.eta_seconds:,.0f} s"
    bar.update(
        line,
        description=batch.status,
        completed=done,
        total=total or None,
        rate=rate,
        eta=progress.waiting_for or eta,
    )
