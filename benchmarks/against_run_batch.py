"""One table through this project and through `vllm run-batch`, with the same rows, model and flags, in one run.

    python benchmarks/against_run_batch.py TABLE.parquet

TABLE needs the text columns `package`, `summary` and `section`, like dags_examples/data/packages.parquet; the sections
are the choices. Both sides are timed from the start of the first process to the last row on disk, so that the start of
the engine counts. Prints the comparison as Markdown. Needs both environments (`make .venv .venv-vllm`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message

sys.path.append(str(Path(__file__).resolve().parents[1] / "dags_examples" / "demo"))

from memory import Memory
from pool import (
    ENGINE_ARGUMENTS,
    ENGINE_ENVIRONMENT,
    MODEL_NAME,
    TINY_MODEL,
    VLLM,
    Pool,
    running_pool,
)

PROMPT = "Which section of Debian does this package belong to?\n\n{package}: {summary}"
MAX_TOKENS = 16
MAX_NUM_SEQS = 256


@dataclass
class Outcome:
    seconds: float
    answers: list[str | None]
    lines: list[str] = field(default_factory=list)


def run_batch(table: list[dict[str, str]], choices: list[str], folder: Path) -> Outcome:
    requests, output = folder / "requests.jsonl", folder / "output.jsonl"
    with requests.open("w") as stream:
        for number, row in enumerate(table):
            body = {
                "model": MODEL_NAME,
                "messages": [{"role": "user", "content": PROMPT.format(**row)}],
                "temperature": 0.0,
                "max_tokens": MAX_TOKENS,
                "structured_outputs": {"choice": choices},
            }
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            stream.write(json.dumps(line) + "\n")
    command = [VLLM, "run-batch", "-i", requests, "-o", output, "--model", TINY_MODEL]
    command += ["--served-model-name", MODEL_NAME]
    begun = time.monotonic()
    with (folder / "run-batch.log").open("wb") as log:
        subprocess.run(
            [*command, f"--max-num-seqs={MAX_NUM_SEQS}", *ENGINE_ARGUMENTS],
            env={**os.environ, **ENGINE_ENVIRONMENT},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    seconds = time.monotonic() - begun
    answers: list[str | None] = [None] * len(table)
    for line in output.open():
        result = json.loads(line)
        if result["response"]["status_code"] == 200:
            answers[int(result["custom_id"])] = result["response"]["body"]["choices"][0]["message"]["content"]
    return Outcome(seconds, answers)


def ours(path: Path, choices: list[str], folder: Path) -> Outcome:
    source, target = folder / "data" / "source.parquet", folder / "data" / "target.parquet"
    source.parent.mkdir()
    source.write_bytes(path.read_bytes())
    spec = DatasetSpec(
        source=str(source),
        target=str(target),
        messages=[Message(role="user", content=PROMPT)],
        choices=choices,
        parameters={"max_tokens": MAX_TOKENS},
    )
    seconds, batch, peaks = pool_over(folder, spec)
    before, after = pq.read_table(source), pq.read_table(target)
    assert after.select(before.column_names).equals(before), "the target's source columns differ from the source"
    lines = [
        f"rows: {before.num_rows:,} in, {after.num_rows:,} out, source columns and order equal",
        f"statuses: {batch.manifest.counts if batch.manifest else None}",
        f"chunks running: {(batch.finalizing_at or 0) - (batch.in_progress_at or 0):,} s; "
        f"assembling: {(batch.completed_at or 0) - (batch.finalizing_at or 0)} s",
    ]
    lines += [f"peak memory, {part}: {size / 1e6:,.0f} MB" for part, size in sorted(peaks.items())]
    return Outcome(seconds, after["llm_output"].to_pylist(), lines)


def pool_over(folder: Path, spec: DatasetSpec) -> tuple[float, Batch, dict[str, int]]:
    """Starts a pool, runs one batch, ends the pool: seconds from its start, the batch, peak memory of each part."""
    begun = time.monotonic()
    with running_pool(folder, max_num_seqs=MAX_NUM_SEQS) as pool:
        with Memory(pool.process.pid) as memory:
            batch = follow(pool, spec)
        return time.monotonic() - begun, batch, memory.peaks


def follow(pool: Pool, spec: DatasetSpec) -> Batch:
    with pool.client() as client:
        while True:
            try:
                batch = client.submit(BatchCreate(dataset=spec, model=pool.model, key="benchmark"))
                break
            except NoAnswerError:
                time.sleep(0.1)
        while not batch.status.ended:
            time.sleep(0.5)
            batch = client.get(batch.id)
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    path = parser.parse_args().table.resolve()
    table = pq.read_table(path, columns=["package", "summary", "section"]).to_pylist()
    choices = sorted({row["section"] for row in table})
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        theirs = run_batch(table, choices, Path(one))
        mine = ours(path, choices, Path(other))
    same = sum(a == b for a, b in zip(theirs.answers, mine.answers, strict=True))
    print(f"{len(table):,} rows, {len(choices)} choices; every start counted\n")
    print("| | seconds | rows/s |\n|---|---|---|")
    for name, outcome in (("vllm run-batch", theirs), ("airflow_batch_llm", mine)):
        print(f"| {name} | {outcome.seconds:,.1f} | {len(table) / outcome.seconds:,.1f} |")
    print(f"\nrate over vllm run-batch: {theirs.seconds / mine.seconds:.2f}")
    print(f"equal answers: {same:,} of {len(table):,}")
    print("\n".join(mine.lines))


if __name__ == "__main__":
    main()
