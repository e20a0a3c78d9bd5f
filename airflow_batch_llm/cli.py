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
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from airflow_batch_llm import __version__, clock
from airflow_batch_llm.client.batch_client import DEFAULT_URL, BatchClient
from airflow_batch_llm.client.watch import raise_unless_completed
from airflow_batch_llm.errors import BatchEndedError, BatchLLMError, NoAnswerError
from airflow_batch_llm.models import RowStatus
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
    list[Path] | None,
    typer.Option("--data-root", help="Tables may be read and written below here only. Repeatable. [default: .]"),
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
        data_roots=_roots(data_root),
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
        service=ServiceSettings(home=_real(home), data_roots=_roots(data_root), port=port),
        engine=_engine(model, served_model_name, None, vllm, engine_args, max_num_seqs),
    )
    err.print(
        f"service  http://127.0.0.1:{port}   data root {', '.join(map(str, embedded.service.data_roots))}\n"
        f"token    {embedded.service.token_path} (readable by you only)\n"
        f"model    {embedded.engine.served_model_name}   (its engine takes a while to start)",
        highlight=False,
    )
    embedded.run()


@app.command()
def submit(
    source: Annotated[str, typer.Argument(help="The table: a .parquet, .jsonl or .csv file.")],
    target: Annotated[str, typer.Argument(help="Where the result goes.")],
    model: Annotated[str, typer.Option(help="What the model is called.")],
    prompt: Annotated[str, typer.Option(help="The template: {name} is replaced by that column.")],
    system: Annotated[str | None, typer.Option(help="A template for the system message.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="One of the only answers allowed. Repeatable.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of one answer.")] = None,
    key: Annotated[str | None, typer.Option(help="Submitting twice with one key gives one batch.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a target that exists.")] = False,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """Submit a table; prints the batch's id."""
    messages = [Message(role="system", content=system)] if system else []
    spec = DatasetSpec(
        source=_absolute(source),
        target=_absolute(target),
        messages=[*messages, Message(role="user", content=prompt)],
        choices=choice or None,
        parameters={} if max_tokens is None else {"max_tokens": max_tokens},
        overwrite=overwrite,
    )
    with _client(url, home) as client:
        batch = client.submit(BatchCreate(dataset=spec, model=model, key=key, priority=priority))
    out.print(batch.id, highlight=False)
    if batch.progress.waiting_for:
        err.print(batch.progress.waiting_for, markup=False, highlight=False, soft_wrap=True)


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
    """List the newest batches."""
    with _client(url, home) as client:
        page = client.list(limit=limit)
    table = Table(Column("batch", no_wrap=True), "status", "model", "rows", "failed", "created (UTC)")
    for batch in page.data:
        progress = batch.progress
        table.add_row(
            batch.id,
            batch.status,
            batch.model,
            f"{progress.rows_done:,}/{progress.rows_total:,}",
            f"{progress.rows_failed:,}",
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
    err.print(f"{batch.request_counts.completed:,} rows answered, {batch.request_counts.failed:,} failed")


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


def _roots(given: list[Path] | None) -> tuple[Path, ...]:
    roots = tuple(_real(path) for path in given or [Path()])
    for root in roots:
        if not root.is_dir():
            raise typer.BadParameter(f"The data root {root} is not a folder.")
    return roots


def _webhooks(url: str | None) -> tuple[WebhookSettings, ...]:
    if url is None:
        return ()
    secret = os.environ.get(WEBHOOK_SECRET_VARIABLE)
    if not secret:
        raise typer.BadParameter(f"A webhook needs a secret to sign with: set {WEBHOOK_SECRET_VARIABLE}.")
    return (WebhookSettings(url=url, secret=secret),)


def _absolute(place: str) -> str:
    """A local path as the service, which has another working directory, must be told it."""
    return place if "://" in place else str(Path(place).absolute())


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


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
    rate = "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f} tokens/s"
    eta = "" if progress.eta_seconds is None else f"ETA {progress.eta_seconds:,.0f} s"
    bar.update(
        line,
        description=batch.status,
        completed=progress.rows_done,
        total=progress.rows_total or None,
        rate=rate,
        eta=progress.waiting_for or eta,
    )
