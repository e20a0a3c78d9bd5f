"""Asks vLLM, past the rest of the project, about all packages that the demo's model was not trained on.

Runs on the interpreter of the vLLM environment, greedy, in float32 and with the groups as choices; prints the share of
right answers, group by group::

    .venv-vllm/bin/python dags_examples/demo/check_section_model.py --table debian.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

from section_groups import GROUP_OF, GROUPS, PROMPT, is_held_out
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

MODEL = Path(__file__).with_name("section_model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="the table that the model was trained on")
    parser.add_argument("--model", type=Path, default=MODEL)
    given = parser.parse_args()
    with given.table.open() as stream:
        table = [json.loads(line) for line in stream]
    seen = {row["summary"] for row in table if not is_held_out(row["source"])}
    rows = [row for row in table if is_held_out(row["source"])]
    answers = answered(given.model, [PROMPT.format(**row) for row in rows])
    truth = [GROUP_OF[row["section"]] for row in rows]
    right = [answer == true for answer, true in zip(answers, truth, strict=True)]
    new = [hit for hit, row in zip(right, rows, strict=True) if row["summary"] not in seen]
    print(f"{sum(right):,} of {len(rows):,} held-out packages right: {sum(right) / len(rows):.1%}")
    print(f"of the {len(new):,} whose summary is in no package of the training: {sum(new) / len(new):.1%}")
    print("group           packages   share   found   right of those said")
    for group in GROUPS:
        count, said = Counter(truth)[group], Counter(answers)[group]
        hits = sum(hit for hit, true in zip(right, truth, strict=True) if true == group)
        found, precise = hits / max(count, 1), hits / max(said, 1)
        print(f"{group:15} {count:8,} {count / len(rows):7.1%} {found:7.1%} {precise:10.1%}")


def answered(model: Path, prompts: list[str]) -> list[str]:
    engine = LLM(
        str(model),
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        max_num_seqs=256,
        kv_cache_memory_bytes=64 << 20,
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
    )
    held = SamplingParams(temperature=0, max_tokens=16, structured_outputs=StructuredOutputsParams(choice=list(GROUPS)))
    outputs = engine.chat([[{"role": "user", "content": prompt}] for prompt in prompts], held)
    return [output.outputs[0].text for output in outputs]


if __name__ == "__main__":
    main()
