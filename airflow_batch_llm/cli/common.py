"""What all commands have in common: where the service is, the token for it, and how trouble is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from rich.console import Console

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchEndedError, BatchLLMError
from airflow_batch_llm.settings import (
    HOME_VARIABLE,
    TOKEN_FILE,
    TOKEN_VARIABLE,
    URL_VARIABLE,
)

app: Final = typer.Typer(
    name="batch-llm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LLM steps over tables, on your own GPUs.",
)
out: Final = Console()
err: Final = Console(stderr=True)
DEFAULT_HOME: Final = Path("~/.batch-llm")
Home = Annotated[Path, typer.Option(envvar=HOME_VARIABLE, help="Where state, bytes and the token are kept.")]
Url = Annotated[
    str,
    typer.Option(
        envvar=URL_VARIABLE, help="The service's address, or those of its replicas: http://a:8765,http://b:8765."
    ),
]


@contextmanager
def explained() -> Iterator[None]:
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


def client_of(url: str, home: Path) -> BatchClient:
    return BatchClient(url, token_of(home))


def token_of(home: Path) -> str:
    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        return token
    path = real(home) / TOKEN_FILE
    try:
        return path.read_text().strip()
    except OSError as error:
        raise typer.BadParameter(
            f"There is no token: {TOKEN_VARIABLE} is not set and {path} cannot be read ({error.strerror}). "
            "The service writes it at its first start."
        ) from error


def real(path: Path) -> Path:
    return path.expanduser().resolve()
