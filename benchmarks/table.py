"""One large Parquet table through plan, run and assembly into typed Parquet, with the peak memory of each part.

    python benchmarks/table.py --rows 1000000 --s3
    python benchmarks/table.py --rows 10000000 --plan-only

With `--s3` source, target and the service's own bytes lie on an S3 protocol server (moto) on this machine. The engine
is the fake one of the tests, so that the rates are those of the service and the worker alone; all share the machine.
Prints a Markdown table. Needs the environment of `make test-fast`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from memory import Memory
from request_file import MODEL, free_port, left, process, until

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.settings import TOKEN_FILE, TOKEN_VARIABLE
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message

BUCKET = "lake"
SCHEMA = {
    "type": "object",
    "properties": {"section": {"type": "string"}, "confident": {"type": "boolean"}},
    "required": ["section", "confident"],
}
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_REGION": "us-east-1"}


def write_table(path: Path, rows: int) -> None:
    """Distinct texts in random order, a nested column and a number beside them."""
    order = np.random.default_rng(0).permutation(rows)
    schema = pa.schema(
        [("name", pa.string()), ("text", pa.string()), ("tags", pa.list_(pa.string())), ("n", pa.int64())]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for at in range(0, rows, 100_000):
            some = [int(n) for n in order[at : at + 100_000]]
            columns = [
                [f"package-{n}" for n in some],
                [
                    f"Package {n} is a library of routines for the handling of things. Which section is it of?"
                    for n in some
                ],
                [["a", str(n % 10)] for n in some],
                some,
            ]
            writer.write_table(pa.table(columns, schema=schema))


@contextlib.contextmanager
def s3_server(folder: Path, source: Path):
    """An S3 protocol server with the table in a bucket; the environment points to it."""
    port = free_port()
    os.environ.update(S3_ENVIRONMENT, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    from airflow_batch_llm.storage.s3_client import client

    with process(["moto.server", "-H", "127.0.0.1", "-p", str(port)], folder / "s3.log"):
        until(lambda: client().create_bucket(Bucket=BUCKET))
        client().upload_file(str(source), BUCKET, "data/in.parquet")
        yield


def run(folder: Path, rows: int, *, s3: bool, plan_only: bool) -> list[str]:
    data, home = folder / "data", folder / "home"
    data.mkdir()
    write_table(data / "in.parquet", rows)
    place = f"s3://{BUCKET}/data" if s3 else str(data)
    engine_port, port = free_port(), free_port()
    serve = ["airflow_batch_llm", "serve", "--home", str(home), "--data-root", place, "--port", str(port)]
    serve += ["--storage", f"s3://{BUCKET}/own"] if s3 else []
    lines = []
    with contextlib.ExitStack() as parts:
        if s3:
            parts.enter_context(s3_server(folder, data / "in.parquet"))
        parts.enter_context(process(["tests.worker.fake_engine", "--port", str(engine_port)], folder / "engine.log"))
        service = parts.enter_context(process(serve, folder / "service.log"))
        token = until(lambda: (home / TOKEN_FILE).read_text().strip())
        client = parts.enter_context(BatchClient(f"http://127.0.0.1:{port}", token))
        until(client.models)
        memory = parts.enter_context(Memory(service.pid))

        def took(step: str, begun: float) -> None:
            seconds = time.monotonic() - begun
            part = memory.peaks.get(f"service, {step}", 0) / 1e6
            whole = memory.peaks.get("service, all of it", 0) / 1e6
            lines.append(f"| {step} | {seconds:,.1f} | {rows / seconds:,.0f} | {part or whole:,.0f} | {whole:,.0f} |")
            memory.peaks.clear()

        spec = DatasetSpec(
            source=f"{place}/in.parquet",
            target=f"{place}/out.parquet",
            messages=[Message(role="user", content="{name}: {text}")],
            output_schema=SCHEMA,
            parameters={"max_tokens": 16},
        )
        begun = time.monotonic()
        batch = left(client, client.submit(BatchCreate(dataset=spec, model=MODEL)).id, "validating")
        took("plan", begun)
        assert batch.request_counts.total == rows, batch
        if plan_only:
            return lines
        work = ["airflow_batch_llm", "work", "--url", client.url, "--endpoint", f"http://127.0.0.1:{engine_port}"]
        work += ["--model", MODEL, "--home", str(home), "--max-num-seqs", "256"]
        begun = time.monotonic()
        worker = parts.enter_context(process(work, folder / "worker.log", **{TOKEN_VARIABLE: token}))
        of_worker = parts.enter_context(Memory(worker.pid))
        left(client, batch.id, "in_progress")
        took("run", begun)
        lines.append(f"| (the worker) | | | {of_worker.peaks.get('worker', 0) / 1e6:,.0f} | |")
        begun = time.monotonic()
        batch = left(client, batch.id, "finalizing")
        took("assemble", begun)
        assert batch.status == "completed", batch
        assert batch.manifest is not None
        assert batch.manifest.counts == {"success": rows}, batch.manifest
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--s3", action="store_true", help="source, target and the service's bytes on S3")
    parser.add_argument("--plan-only", action="store_true", help="plan, and run nothing")
    given = parser.parse_args()
    sys.path.append(str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), given.rows, s3=given.s3, plan_only=given.plan_only)
    print(f"{given.rows:,} rows in one Parquet file{' on S3' if given.s3 else ''}\n")
    print(
        "| step | seconds | rows/s | peak memory of its process, MB | of the whole service, MB |\n|---|---|---|---|---|"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
