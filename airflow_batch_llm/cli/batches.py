"""The commands that talk to a service: batches submitted, watched, read, ended."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from airflow_batch_llm import clock
from airflow_batch_llm.cli.asked import Asked, absolute_or_none, batch_create
from airflow_batch_llm.cli.common import DEFAULT_HOME, Home, Url, app, client_of, err, out
from airflow_batch_llm.cli.tables import is_short_of_room, listing, show
from airflow_batch_llm.client.batch_client import DEFAULT_URL, BatchClient
from airflow_batch_llm.client.texts import estimate_lines, raise_unless_completed, rows_so_far, status_words
from airflow_batch_llm.errors import BatchFailedError, NoAnswerError
from airflow_batch_llm.models import RowStatus
from airflow_batch_llm.wire import Batch

WATCH_SECONDS: Final = 1.0
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
QuarantineOption = Annotated[
    str | None, typer.Option(help="A file for a copy of the rows that failed, in the target's format.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a target and a quarantine that exist.")]


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
    quarantine: QuarantineOption = None,
    reuse: ReuseOption = "auto",
    key: Annotated[str | None, typer.Option(help="Submitting twice with one key gives one batch.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    overwrite: Overwrite = False,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """Submit a table; prints the batch's id."""
    asked = Asked(prompt, system, choice, output_schema, embed, max_tokens)
    kept = {"quarantine": absolute_or_none(quarantine), "overwrite": overwrite}
    spec = asked.spec([source, *(more or [])], target, format=table_format, compression=compression, **kept)
    create = batch_create(dataset=spec, model=model, endpoint=asked.endpoint, key=key, priority=priority, reuse=reuse)
    with client_of(url, home) as client:
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
    quarantine: QuarantineOption = None,
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
    kept = {"quarantine": absolute_or_none(quarantine), "overwrite": overwrite}
    spec = asked.spec([source, *(more or [])], target, format=table_format, compression=compression, **kept)
    asked_for = {"dataset": spec, "model": model, "endpoint": asked.endpoint}
    create = batch_create(**asked_for, key=key, priority=priority, reuse=reuse, dry_run=True)
    with client_of(url, home) as client:
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
    with client_of(url, home) as client:
        batch = client.get(batch_id)
    out.print_json(batch.model_dump_json(exclude_none=True))


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    url: Url = DEFAULT_URL,
    home: Home = DEFAULT_HOME,
) -> None:
    """List the newest batches. Rows that are spared got the answer of an equal row, of that batch or an earlier one.

    A terminal of less than 120 columns is not shown the spared rows and the model; `status` has them.
    """
    with client_of(url, home) as client:
        page = client.list(limit=limit)
    few = is_short_of_room()
    columns = ("batch", "status", "rows", "failed", "created (UTC)")
    table = listing(*columns, *(() if few else ("spared", "model")), whole=("status",))
    for batch in page.data:
        total, done, failed = rows_so_far(batch)
        shown = [batch.id, status_words(batch), f"{done:,}/{total:,}", f"{failed:,}"]
        shown.append(f"{clock.from_unix(batch.created_at):%Y-%m-%d %H:%M}")
        more = [f"{batch.progress.rows_duplicate + batch.progress.rows_reused:,}", batch.model or ""]
        table.add_row(*map(Text, shown if few else shown + more))
    show(table)


@app.command()
def watch(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Follow a batch to its end: rows, tokens a second, time to go."""
    with client_of(url, home) as client, _bar() as bar:
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
    with client_of(url, home) as client:
        for row in client.results(batch_id, limit=limit, status=status):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


@app.command()
def cancel(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """End a batch; what was done of it is kept."""
    with client_of(url, home) as client:
        batch = client.cancel(batch_id)
    out.print(f"{batch.id} is {batch.status}", highlight=False)


@app.command()
def pause(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Keep workers from getting more of a batch; what they hold goes on to its end, about a minute's work."""
    with client_of(url, home) as client:
        batch = client.pause(batch_id)
    out.print(f"{batch.id} is {status_words(batch)}", highlight=False)


@app.command()
def resume(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Let a paused batch go on, whether anybody watches it or not."""
    with client_of(url, home) as client:
        batch = client.resume(batch_id)
    out.print(f"{batch.id} is {status_words(batch)}", highlight=False)


@app.command()
def retry(batch_id: BatchId, url: Url = DEFAULT_URL, home: Home = DEFAULT_HOME) -> None:
    """Do the rows again that failed, expired or were cancelled; prints the new batch's id."""
    with client_of(url, home) as client:
        batch = client.retry(batch_id)
    out.print(batch.id, highlight=False)


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
        description=status_words(batch),
        completed=done,
        total=total or None,
        rate=rate,
        eta=progress.waiting_for or eta,
    )
