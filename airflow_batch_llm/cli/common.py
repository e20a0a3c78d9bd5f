"""What all commands have in common: where the service is, the token for it, and how trouble is told."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError
from rich.console import Console

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.client.replicas import base_urls
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


def http_addresses(value: str | None) -> str | None:
    """Refuses an option that is not the address of a server, or several with commas between them."""
    for address in base_urls(value) if value is not None else ():
        if not _is_address(address):
            raise typer.BadParameter(f"{address!r} is not an address like http://host:8765.")
    return value


def _is_address(text: str) -> bool:
    try:
        split = urlsplit(text)
        return split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        return False


def finite(value: float | None) -> float | None:
    """Refuses NaN, which is beyond no limit."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("It has to be a number.")
    return value


Url = Annotated[
    str,
    typer.Option(
        envvar=URL_VARIABLE,
        callback=http_addresses,
        help="The service's address, or those of its replicas: http://a:8765,http://b:8765.",
    ),
]
MOST_DAYS: Final = 36_500
"""A hundred years: for ever, and still a time that a database can add."""


@contextmanager
def explained() -> Iterator[None]:
    """Tells what went wrong in a sentence and ends the command: with code 2 where a batch ended badly, else with 1."""
    try:
        yield
    except BatchLLMError as error:
        _end(str(error), 2 if isinstance(error, BatchEndedError) else 1)
    except ValidationError as error:
        first = error.errors()[0]
        _end(f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Nothing was sent.")
    except UnicodeError as error:
        _end(f"Something that was given is not text in the encoding it has to have: {error}.")
    except OSError as error:
        what = f"{error.filename} cannot be used" if error.filename else "The system refuses"
        _end(f"{what}: {error.strerror or error}. Is it the right place, and may you use it?")


def _end(told: str, code: int = 1) -> NoReturn:
    err.print(told, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def client_of(url: str, home: Path) -> BatchClient:
    return BatchClient(url, token_of(home))


def token_of(home: Path) -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
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
    except UnicodeError as error:
        raise typer.BadParameter(f"{path} holds no token: it is not text. Nothing was sent.") from error


def real(path: Path) -> Path:
    return path.expanduser().resolve()
