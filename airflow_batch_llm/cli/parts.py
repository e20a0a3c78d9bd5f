"""The commands that run the parts: service, worker, or both."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from airflow_batch_llm.cli.common import (
    DEFAULT_HOME,
    MOST_DAYS,
    Home,
    Url,
    app,
    err,
    explained,
    finite,
    http_addresses,
    real,
    token_of,
)
from airflow_batch_llm.cli.database_url import DatabaseUrl
from airflow_batch_llm.client.batch_client import DEFAULT_URL
from airflow_batch_llm.settings import (
    DEFAULT_PORT,
    WEBHOOK_SECRET_VARIABLE,
    WEBHOOK_URL_VARIABLE,
    EngineSettings,
    Limits,
    ServiceSettings,
    WebhookSettings,
    WorkerSettings,
)
from airflow_batch_llm.storage import bucket_and_prefix

DataRoot = Annotated[
    list[str] | None,
    typer.Option(
        "--data-root",
        help="Tables may be read and written below here only: a folder, or s3://bucket/folder. Repeatable. "
        "[default: .]",
    ),
]
TeamRoot = Annotated[
    list[str] | None,
    typer.Option(
        "--team-root",
        help="TEAM=FOLDER or TEAM=s3://bucket/folder: that team's tables may be there only, and no longer below "
        "--data-root. Repeatable.",
    ),
]
ModelOption = Annotated[str, typer.Option(help="A model's local path, or its name as `vllm serve` takes it.")]
ServedName = Annotated[str | None, typer.Option(help="What batches call the model. [default: the same as --model]")]
VllmCommand = Annotated[
    str, typer.Option("--vllm", envvar="BATCH_LLM_VLLM", help="The vllm command, for instance of another environment.")
]
EngineArguments = Annotated[str, typer.Option(help="More arguments for `vllm serve`, as one string.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Rows that the engine works on at once.")]
GpuHourPrice = Annotated[
    float | None,
    typer.Option(
        min=0, max=1e9, callback=finite, help="What an hour of a worker's engine costs, for estimates and reports."
    ),
]
ApiInputPrice = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1e9,
        callback=finite,
        help="What a million prompt tokens cost at an API that you could use instead, for reports to compare with.",
    ),
]
ApiOutputPrice = Annotated[
    float | None,
    typer.Option(min=0, max=1e9, callback=finite, help="The same for a million answer tokens."),
]
Most = Annotated[int | None, typer.Option(min=1, help="Refuse what is above this. [default: no limit]")]
LONGEST_NAME: Final = 128
LONGEST_CURRENCY: Final = 8


def short(value: str) -> str:
    """Refuses what does not fit beside a number."""
    if not value.isprintable() or not 0 < len(value.strip()) <= LONGEST_CURRENCY:
        raise typer.BadParameter(f"It has to be a short word or sign, of 1 to {LONGEST_CURRENCY} characters.")
    return value.strip()


Currency = Annotated[str, typer.Option(callback=short, help="What the prices are in, as reports are to show it.")]


@app.command()
def serve(
    home: Home = DEFAULT_HOME,
    data_root: DataRoot = None,
    team_root: TeamRoot = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port to listen on; 0 for any that is free.")
    ] = DEFAULT_PORT,
    max_file_bytes: Most = None,
    max_file_rows: Most = None,
    max_embedding_inputs: Most = None,
    max_creates_per_hour: Most = None,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Refuse a longer JSON body.")] = Limits.body_bytes,
    max_part_bytes: Annotated[int, typer.Option(min=1, help="Refuse a longer part of a worker.")] = Limits.part_bytes,
    spare_bytes: Annotated[
        int, typer.Option(min=0, help="Refuse uploads that leave less free on the disk.")
    ] = Limits.spare_bytes,
    extensions: Annotated[
        bool, typer.Option(help="Whether clients may use more than OpenAI's API has: tables, keys, results, retry.")
    ] = True,
    storage: Annotated[
        str | None, typer.Option(help="Where the service's own bytes go: s3://bucket/folder. [default: below --home]")
    ] = None,
    database_url: DatabaseUrl = None,
    reuse_days: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_DAYS, help="How long a table's answers may be used for equal rows of later tables."
        ),
    ] = 30,
    gpu_hour_price: GpuHourPrice = None,
    api_input_price: ApiInputPrice = None,
    api_output_price: ApiOutputPrice = None,
    currency: Currency = ServiceSettings.currency,
    keep_days: Annotated[
        float,
        typer.Option(
            min=0,
            max=MOST_DAYS,
            callback=finite,
            help="How long what a batch stored is kept after its end, for results and retries.",
        ),
    ] = 30,
    record_days: Annotated[
        float,
        typer.Option(min=0, max=MOST_DAYS, callback=finite, help="How long the record of an ended batch is kept."),
    ] = 365,
    grace_days: Annotated[
        float,
        typer.Option(
            min=0, max=MOST_DAYS, callback=finite, help="How long nothing is cleaned away that may be in use still."
        ),
    ] = 1,
    scratch: Annotated[
        Path | None, typer.Option(help="Where temporary files go. [default: scratch below --home]")
    ] = None,
    webhook_url: Annotated[
        str | None, typer.Option(envvar=WEBHOOK_URL_VARIABLE, help="Told when a batch ends.")
    ] = None,
) -> None:
    """Run the service: the HTTP API, planning and assembling.

    The webhook's calls are signed (Standard Webhooks) with the secret in BATCH_LLM_WEBHOOK_SECRET: `whsec_` and base64.
    """
    from airflow_batch_llm.service.app import serve as run

    log_to_stderr()
    if storage is not None:
        bucket_and_prefix(storage, option="--storage")
    settings = ServiceSettings(
        home=_folder(home, "--home"),
        **_roots(data_root),
        team_roots=_team_roots(team_root),
        storage_url=storage,
        database_url=database_url,
        reuse_seconds=reuse_days * 86_400,
        gpu_hour_price=gpu_hour_price,
        api_input_price=api_input_price,
        api_output_price=api_output_price,
        currency=currency,
        keep_seconds=round(keep_days * 86_400),
        record_seconds=round(record_days * 86_400),
        grace_seconds=round(grace_days * 86_400),
        scratch=_folder(scratch, "--scratch") if scratch else None,
        host=host,
        port=port,
        limits=Limits(
            file_bytes=max_file_bytes,
            file_rows=max_file_rows,
            embedding_inputs=max_embedding_inputs,
            creates_per_hour=max_creates_per_hour,
            body_bytes=max_body_bytes,
            part_bytes=max_part_bytes,
            spare_bytes=spare_bytes,
        ),
        extensions=extensions,
        webhooks=_webhooks(webhook_url),
    )
    with explained():
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
        str | None,
        typer.Option(
            callback=http_addresses, help="Use this OpenAI-compatible server instead of starting `vllm serve`."
        ),
    ] = None,
    vllm: VllmCommand = "vllm",
    engine_args: EngineArguments = "",
    max_num_seqs: MaxNumSeqs = 256,
) -> None:
    """Run a worker: it starts and supervises `vllm serve`, and does chunks."""
    from airflow_batch_llm.worker.process import work as run

    log_to_stderr()
    engine = _engine(model, served_model_name, endpoint, vllm, engine_args, max_num_seqs)
    name = _folder_name(name or f"{socket.gethostname()}-{os.getpid()}")
    token, folder = token_of(home), _folder(home / "workers" / name, "--home")
    settings = WorkerSettings(url=url, token=token, name=name, home=folder, engine=engine)
    with explained():
        run(settings)


@app.command()
def up(
    model: ModelOption,
    home: Home = DEFAULT_HOME,
    data_root: DataRoot = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The service's port on this machine.")] = DEFAULT_PORT,
    served_model_name: ServedName = None,
    vllm: VllmCommand = "vllm",
    engine_args: EngineArguments = "",
    max_num_seqs: MaxNumSeqs = 256,
    gpu_hour_price: GpuHourPrice = None,
    api_input_price: ApiInputPrice = None,
    api_output_price: ApiOutputPrice = None,
    currency: Currency = ServiceSettings.currency,
) -> None:
    """Run service and worker together on this machine, and start again what dies."""
    from airflow_batch_llm.embedded import Embedded

    log_to_stderr()
    embedded = Embedded(
        service=ServiceSettings(
            home=_folder(home, "--home"),
            **_roots(data_root),
            port=port,
            gpu_hour_price=gpu_hour_price,
            api_input_price=api_input_price,
            api_output_price=api_output_price,
            currency=currency,
        ),
        engine=_engine(model, served_model_name, None, vllm, engine_args, max_num_seqs),
    )
    err.print(
        f"service  http://127.0.0.1:{port}   data root {', '.join(embedded.service.all_roots)}\n"
        f"pages    http://127.0.0.1:{port}/ui/   (log in with the token)\n"
        f"token    {embedded.service.token_path} (readable by you only)\n"
        f"model    {embedded.engine.served_model_name}   (its engine takes a while to start)",
        highlight=False,
    )
    embedded.run()


def _engine(
    model: str, served: str | None, endpoint: str | None, vllm: str, arguments: str, max_num_seqs: int
) -> EngineSettings:
    return EngineSettings(
        model=model,
        served_model_name=served or model,
        endpoint=endpoint,
        command=_words(vllm, "--vllm") if endpoint else _command(vllm),
        arguments=_words(arguments, "--engine-args"),
        max_num_seqs=max_num_seqs,
    )


def _command(text: str) -> tuple[str, ...]:
    """The vllm command, which must be there: it is looked up before anything is started."""
    words = _words(text, "--vllm")
    if not words or shutil.which(words[0]) is None:
        raise typer.BadParameter(
            f"--vllm {text!r} is no command of this machine. It has to name vLLM's own: `vllm` where that is "
            "installed in the same environment, or a path like engine/bin/vllm. Nothing was started."
        )
    return words


def _words(text: str, option: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r} cannot be cut into words as a shell does: {error}.") from error


def _folder_name(name: str) -> str:
    """A worker's name, which is also that of its folder."""
    if name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise typer.BadParameter(
            f"--name {name[:80]!r} has to be a name for a folder: without / and of at most {LONGEST_NAME} bytes."
        )
    return name


def _folder(path: Path, option: str) -> Path:
    """A folder that can be written, made if it is not there."""
    path = real(path)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise typer.BadParameter(
            f"The folder {path} of {option} cannot be made or written: {error.strerror}. Nothing was started."
        ) from error
    return path


def _roots(given: list[str] | None) -> dict[str, Any]:
    """The data roots as settings: local folders, and prefixes on S3."""
    prefixes = tuple(root for root in given or () if root.startswith("s3://"))
    for prefix in prefixes:
        bucket_and_prefix(prefix, option="The data root")
    roots = tuple(real(Path(root)) for root in given or ["."] if not root.startswith("s3://"))
    for root in roots:
        if not root.is_dir():
            raise typer.BadParameter(f"The data root {root} is not a folder.")
    return {"data_roots": roots, "data_prefixes": prefixes}


def _team_roots(given: list[str] | None) -> dict[str, tuple[str, ...]]:
    """The roots of single teams, each checked like a data root."""
    found: dict[str, tuple[str, ...]] = {}
    for item in given or ():
        team, is_, root = item.partition("=")
        if not (team and is_ and root):
            raise typer.BadParameter(f"--team-root {item} is not of the form TEAM=FOLDER or TEAM=s3://bucket/folder.")
        roots = _roots([root])
        found[team] = (*found.get(team, ()), *map(str, roots["data_roots"]), *roots["data_prefixes"])
    return found


def _webhooks(url: str | None) -> tuple[WebhookSettings, ...]:
    if url is None:
        return ()
    secret = os.environ.get(WEBHOOK_SECRET_VARIABLE)
    if not secret:
        raise typer.BadParameter(f"A webhook needs a secret to sign with: set {WEBHOOK_SECRET_VARIABLE}.")
    return (WebhookSettings(url=url, secret=secret),)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
