"""Whether answers belong to their rows: a table through a pool, and the same prompts through vLLM's own `LLM.chat`.

    python benchmarks/same_answers.py TABLE.parquet [--rows 2000]

Greedy, float32, without constraints, so that every row has an answer of its own. Prints how many are equal, row by
row; exits with 1 unless all are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from against_run_batch import ENGINE_ENVIRONMENT, TINY_MODEL, VLLM, pool_over

from airflow_batch_llm.wire import DatasetSpec, Message

PROMPT = "Describe the package {package}: {summary}"
MAX_TOKENS = 24

OFFLINE = f"""
import json, sys
from vllm import LLM, SamplingParams
prompts = json.load(open(sys.argv[1]))
llm = LLM({str(TINY_MODEL)!r}, dtype="float32", max_model_len=1024, enforce_eager=True, max_num_seqs=256,
          kv_cache_memory_bytes=64 << 20, enable_chunked_prefill=False, max_num_batched_tokens=8192)
outputs = llm.chat([[{{"role": "user", "content": prompt}}] for prompt in prompts],
                   SamplingParams(temperature=0.0, max_tokens={MAX_TOKENS}))
json.dump([output.outputs[0].text for output in outputs], open(sys.argv[2], "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    given = parser.parse_args()
    table = pq.read_table(given.table).slice(0, given.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, target = folder / "data" / "source.parquet", folder / "data" / "target.parquet"
        source.parent.mkdir()
        pq.write_table(table, source)
        spec = DatasetSpec(
            source=str(source),
            target=str(target),
            messages=[Message(role="user", content=PROMPT)],
            parameters={"max_tokens": MAX_TOKENS},
        )
        pool_over(folder, spec)
        mine = pq.read_table(target)["llm_output"].to_pylist()
        rows = table.select(["package", "summary"]).to_pylist()
        theirs = offline(folder, [PROMPT.format(**row) for row in rows])
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    print(f"{same:,} of {len(theirs):,} rows have the answer that LLM.chat gives ({len(set(theirs)):,} different ones)")
    sys.exit(same != len(theirs))


def offline(folder: Path, prompts: list[str]) -> list[str]:
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "offline.py").write_text(OFFLINE)
    with (folder / "offline.log").open("wb") as log:
        subprocess.run(
            [VLLM.with_name("python"), folder / "offline.py", folder / "prompts.json", folder / "answers.json"],
            env={**os.environ, **ENGINE_ENVIRONMENT},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    answers: list[str] = json.loads((folder / "answers.json").read_text())
    return answers


if __name__ == "__main__":
    main()
