"""`batch-llm serve` with short leases and small chunks, which no option of the command sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from airflow_batch_llm.cli.parts import log_to_stderr
from airflow_batch_llm.service.app import serve
from airflow_batch_llm.settings import ServiceSettings

LEASE_SECONDS = 3.0
CHUNK_ROWS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    log_to_stderr()
    serve(
        ServiceSettings(
            home=given.home,
            data_roots=(given.data,),
            port=given.port,
            lease_seconds=LEASE_SECONDS,
            duty_lease_seconds=LEASE_SECONDS,
            chunk_rows=CHUNK_ROWS,
        )
    )


if __name__ == "__main__":
    main()
