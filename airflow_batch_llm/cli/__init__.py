"""The command ``batch-llm``: runs the parts, and talks to a service that runs."""

from __future__ import annotations

import sys
from typing import NoReturn

from airflow_batch_llm import __version__
from airflow_batch_llm.cli import batches, doctor, parts, tokens
from airflow_batch_llm.cli.common import app, explained, out

__all__ = ["app", "batches", "doctor", "main", "parts", "tokens"]


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__, highlight=False)


def main() -> NoReturn:
    """Runs a command; a refusal is a sentence and exit code 1, never a traceback."""
    with explained():
        app()
    sys.exit(0)
