"""A row that really kills vLLM: its batch ends with one error row, and every other row answered.

On a CPU, vLLM 0.32 dies of a seeded sample of a prompt that chunked prefill has split ("CPU Generator does not use
offset"). The engine here splits prompts of more than 256 tokens, which one row has. It is started four times: run by
`make test-all`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from pool import Pool

from airflow_batch_llm.models import CHAT_COMPLETIONS
from airflow_batch_llm.service.suspects import ENGINE_DEATHS
from airflow_batch_llm.wire import BatchCreate
from tests.conftest import eventually, running_pool

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not os.environ.get("WHOLE"), reason="The engine is started four times: see `make test-all`."),
]

ROWS = 2_000
POISON = 1_234


@pytest.fixture(scope="module")
def splitting_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    splits = ["--enable-chunked-prefill", "--max-num-batched-tokens=256"]
    with running_pool(tmp_path_factory.mktemp("splitting"), engine_arguments=splits) as pool:
        yield pool


def _requests(path: Path, model: str) -> Path:
    with path.open("wb") as stream:
        for row in range(ROWS):
            body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": f"Row {row}."}]}
            if row == POISON:
                text = " ".join(f"word{number}" for number in range(120))
                body |= {"messages": [{"role": "user", "content": text}], "temperature": 1.0, "seed": 7}
            line = {"custom_id": str(row), "method": "POST", "url": CHAT_COMPLETIONS, "body": body}
            stream.write(orjson.dumps(line) + b"\n")
    return path


def test_the_batch_of_a_row_that_kills_vllm_ends_with_one_error(splitting_pool: Pool, tmp_path: Path) -> None:
    with splitting_pool.client() as client:
        file = client.upload(_requests(tmp_path / "requests.jsonl", splitting_pool.model))
        create = BatchCreate(input_file_id=file.id, endpoint=CHAT_COMPLETIONS, completion_window="1d")
        batch_id = client.submit(create).id
        eventually(lambda: client.get(batch_id).status.ended, seconds=600, what="the end of the batch")
        batch = client.get(batch_id)
        rows = list(client.results(batch_id))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", ROWS - 1, 1)
    [failed] = [row for row in rows if row["status"] != "success"]
    assert failed["custom_id"] == str(POISON)
    assert failed["response"]["body"]["error"]["code"] == "engine_died"
    log = splitting_pool.log.read_text(errors="replace")
    assert log.count("the engine died with code") == 1 + ENGINE_DEATHS
