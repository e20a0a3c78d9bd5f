"""What asking alike rows side by side gains, and what asking equal rows once gains.

    python benchmarks/prefix_order.py

A table with a long repeated column and a short one, in random order, on real vLLM with prefix caching on and a model
large enough that computing is most of the work (38M random weights, float32). The same prompts go through one engine as
a request file, in row order, and as a table, in the planner's order. The engine is started anew before each, so that
its cache is empty. Prints a Markdown table. Needs both environments (`make .venv .venv-vllm`).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message

sys.path.append(str(Path(__file__).resolve().parents[1] / "dags_examples" / "demo"))

from pool import ROOT, VLLM_ENVIRONMENT, Pool, running_pool, wait_for_worker

PREFIX_WORDS = 190
PARAMETERS = {"max_tokens": 4, "temperature": 0.0}
ENGINE = (
    *("--kv-cache-memory-bytes=150M", "--block-size=32", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
)
MAX_NUM_SEQS = 16


def rows_of(prefixes: int, rows: int, doubled: int) -> list[dict[str, str]]:
    """``rows`` rows over that many long texts in random order; ``doubled`` of them equal another one."""
    pick = random.Random(0)
    words = ["package", "program", "library", "module", "reads", "writes", "tables", "images", "quickly", "safely"]
    long = [f"{number} " + " ".join(pick.choices(words, k=PREFIX_WORDS)) for number in range(prefixes)]
    made = [{"about": long[row % prefixes], "question": f"What of {row}?"} for row in range(rows - doubled)]
    made += pick.choices(made, k=doubled)
    pick.shuffle(made)
    return made


def as_file(pool: Pool, client: BatchClient, table: list[dict[str, str]]) -> Batch:
    path = pool.data_root / "requests.jsonl"
    with path.open("wb") as stream:
        for number, row in enumerate(table):
            content = f"{row['about']}\n\n{row['question']}"
            body = {"model": pool.model, "messages": [{"role": "user", "content": content}], **PARAMETERS}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            stream.write(orjson.dumps(line) + b"\n")
    file = client.upload(path)
    create = BatchCreate(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="1d")
    return client.submit(create)


def as_table(pool: Pool, client: BatchClient, table: list[dict[str, str]], *, reuse: str) -> Batch:
    pq.write_table(pa.Table.from_pylist(table), pool.data_root / "in.parquet")
    spec = DatasetSpec(
        source="in.parquet",
        target="out.parquet",
        messages=[Message(role="user", content="{about}\n\n{question}")],
        parameters=PARAMETERS,
    )
    return client.submit(BatchCreate(dataset=spec, model=pool.model, reuse=reuse))


def measure(model: Path, table: list[dict[str, str]], how: str) -> tuple[float, Batch]:
    """Rows a second from plan to last answer, on an engine that has just started."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_pool(Path(folder), model=model, engine_arguments=ENGINE, max_num_seqs=MAX_NUM_SEQS) as pool,
        pool.client() as client,
    ):
        wait_for_worker(pool)
        batch = as_file(pool, client, table) if how == "file" else as_table(pool, client, table, reuse=how)
        begun = time.monotonic()
        while not batch.status.ended:
            time.sleep(0.1)
            batch = client.get(batch.id)
        seconds = time.monotonic() - begun
        assert batch.request_counts.completed == len(table), batch
    return len(table) / seconds, batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=480)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        build = [VLLM_ENVIRONMENT / "bin" / "python", ROOT / "dags_examples" / "demo" / "make_tiny_model.py", model]
        subprocess.run([*map(str, build), "--layers", "12", "--width", "512"], check=True)
        print("| table | asked | rows/s | beside row order | prompt tokens from the cache |")
        print("|---|---|---|---|---|")
        for name, table in (
            ("120 long texts, more than the cache holds", rows_of(120, rows, 0)),
            ("the same, 30 % of the rows equal others", rows_of(120, rows, int(rows * 0.3))),
            ("10 long texts, which fit the cache", rows_of(10, rows // 3, 0)),
        ):
            base = 0.0
            for how, said in (("file", "in row order"), ("never", "ordered"), ("auto", "ordered, equal rows once")):
                if how == "auto" and "equal" not in name:
                    continue
                rate, batch = measure(model, table, how)
                base = base or rate
                usage = batch.usage
                assert usage is not None
                cached = usage.input_tokens_details.cached_tokens / usage.input_tokens
                print(f"| {name} | {said} | {rate:.1f} | {rate / base:.2f} | {cached:.0%} |", flush=True)


if __name__ == "__main__":
    main()
