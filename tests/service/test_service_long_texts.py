"""Rows and answers that are long, many, or both, in a planner and an assembler with little memory."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import EMBEDDINGS
from airflow_batch_llm.service import (
    asked_rows,
    blocks,
    file_planner,
    parquet_blocks,
    rendering,
    result_files,
    result_index,
    sources,
    table_results,
)
from airflow_batch_llm.service.work_database import open_database
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec
from airflow_batch_llm.worker_wire import ResultLine, RowLine
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, line, openai_client
from tests.service.test_service_bad_input import submit

ROWS = 12_000
LENGTH = 4_000
"""48 MB of texts, as much as the memory there is."""
MEMORY = "48MB"
ROWS_TO_PLAN, MEMORY_TO_PLAN = 30_000, "96MB"
"""A planner's database has whole blocks of rows before it besides."""


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch, service: RunningService) -> None:
    def with_memory(memory: str) -> Any:
        return lambda folder, **_: open_database(folder, memory=memory, threads=1)

    monkeypatch.setattr(asked_rows, "open_database", with_memory(MEMORY_TO_PLAN))
    for module in (table_results, result_index, result_files, file_planner):
        monkeypatch.setattr(module, "open_database", with_memory(MEMORY))
    service.settings = dataclasses.replace(service.settings, chunk_rows=2_000, chunk_tokens=2_000_000)


def long_text(number: int, length: int = LENGTH) -> str:
    return f"{number % 50:02d}{f' {number} text' * (length // 8)}"[:length]


class LongWorker(AnsweringWorker):
    """Answers with something long that says which row it is of."""

    def _answer(self, row: RowLine) -> ResultLine:
        return ResultLine(row.row, "success", output=long_text(row.row), finish_reason="stop")


def work(service: RunningService, worker: AnsweringWorker) -> None:
    assert service.plan()
    worker.work()
    assert service.assemble()


def target(service: RunningService, batch: Batch) -> pa.Table:
    ended = service.client.get(batch.id)
    assert ended.status == "completed", ended.progress.waiting_for
    return pq.read_table(service.data_root / "target.parquet")


@pytest.mark.usefixtures("little_memory")
def test_long_rows_are_planned_in_little_memory_and_alike_ones_side_by_side(service: RunningService) -> None:
    texts = [long_text(row) for row in range(ROWS_TO_PLAN)]
    pq.write_table(pa.table({"a": texts}), service.data_root / "s.parquet")
    batch = submit(service, "s.parquet", passthrough=[])
    assert service.plan()
    worker = AnsweringWorker(service, part_rows=ROWS_TO_PLAN)
    seen: list[str] = []
    while (claimed := worker.claim()) is not None:
        claim, lines = claimed
        bodies = {row.row: json.loads(bytes(row.body))["messages"][0]["content"] for row in lines}
        assert all(texts[row] == body for row, body in bodies.items())
        seen += sorted(bodies.values())
        worker.link.commit(claim, [worker.store(claim, 0, lines)])
    assert sorted(seen) == sorted(texts)
    beginnings = [text[:2] for text in seen]
    assert sum(one != two for one, two in itertools.pairwise(beginnings)) < 70
    assert service.client.get(batch.id).status == "finalizing"


@pytest.mark.usefixtures("little_memory")
def test_long_answers_are_assembled_reused_and_merged_in_little_memory(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third row equals the one before it, and is not asked."""
    monkeypatch.setattr(result_index, "MERGED_AT", 2)
    texts = [f"text {row - (row % 3 == 2)}" for row in range(ROWS)]
    answers = [long_text(row - (row % 3 == 2)) for row in range(ROWS)]
    pq.write_table(pa.table({"a": texts[: ROWS // 2]}), service.data_root / "s.parquet")
    worker = LongWorker(service, part_rows=ROWS, engine_identity="engine-1")
    batch = submit(service, "s.parquet")
    work(service, worker)
    assert target(service, batch)["llm_output"].to_pylist() == answers[: ROWS // 2]
    pq.write_table(pa.table({"a": texts}), service.data_root / "s.parquet")
    batch = submit(service, "s.parquet", overwrite=True)
    worker.asked.clear()
    work(service, worker)
    assert len(worker.asked) == ROWS // 3
    assert target(service, batch)["llm_output"].to_pylist() == answers
    (merged,), _ = service.state.index_files.living("default")
    assert (merged.level, merged.rows) == (1, ROWS * 2 // 3)
    pq.write_table(pa.table({"a": texts[::-1]}), service.data_root / "s.parquet")
    batch = submit(service, "s.parquet", overwrite=True)
    worker.asked.clear()
    work(service, worker)
    assert worker.asked == []
    assert target(service, batch)["llm_output"].to_pylist() == answers[::-1]


@pytest.mark.usefixtures("little_memory")
def test_many_samples_of_a_row_are_as_one_long_answer(service: RunningService) -> None:
    class Samples(AnsweringWorker):
        def _answer(self, row: RowLine) -> ResultLine:
            return ResultLine(row.row, "success", outputs=[f"{row.row} {at} {'x' * 500}" for at in range(8)])

    pq.write_table(pa.table({"a": list(range(ROWS))}), service.data_root / "s.parquet")
    batch = submit(service, "s.parquet", parameters={"n": 8})
    work(service, Samples(service, part_rows=ROWS))
    found = target(service, batch)["llm_output"].to_pylist()
    assert [[sample[:-501] for sample in row] for row in found] == [
        [f"{row} {at}" for at in range(8)] for row in range(ROWS)
    ]


@pytest.mark.usefixtures("little_memory")
def test_vectors_of_a_thousand_dimensions_are_assembled_in_little_memory(service: RunningService) -> None:
    class Vectors(AnsweringWorker):
        def _answer(self, row: RowLine) -> ResultLine:
            vector = np.full(1_024, row.row, "<f4").tobytes()
            return ResultLine(row.row, "success", embedding=base64.b64encode(vector).decode())

    pq.write_table(pa.table({"a": list(range(ROWS))}), service.data_root / "s.parquet")
    spec = DatasetSpec(source="s.parquet", target="target.parquet", input="{a}")
    batch = service.client.submit(BatchCreate(dataset=spec, model="m", endpoint=EMBEDDINGS))
    work(service, Vectors(service, part_rows=ROWS))
    for at, vectors in enumerate(target(service, batch)["llm_embedding"].to_pylist()):
        assert (len(vectors), vectors[0], vectors[-1]) == (1_024, at, at)


@pytest.mark.usefixtures("little_memory")
def test_long_responses_of_a_request_file_are_assembled_in_little_memory(service: RunningService) -> None:
    client = openai_client(service)
    requests = [line(row, body={"messages": [{"role": "user", "content": long_text(row)}]}) for row in range(ROWS)]
    batch = create(client, file_of(requests))
    work(service, AnsweringWorker(service, part_rows=ROWS))
    output_id = client.batches.retrieve(batch.id).output_file_id
    assert output_id is not None
    lines = [json.loads(text) for text in client.files.content(output_id).iter_lines()]
    assert [found["custom_id"] for found in lines] == [f"row-{row}" for row in range(ROWS)]
    for row, found in enumerate(lines):
        assert found["response"]["body"]["echo"]["messages"][0]["content"] == long_text(row)


def test_a_row_too_many_lines_in_a_part_is_noticed() -> None:
    with pytest.raises(table_results.CountsError, match="1 results in 2 lines"):
        table_results.result_table(b'{"row":1,"status":"success"}\n\n')


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "jsonl.gz", "csv.zst"])
def test_a_row_that_is_too_large_is_said_with_its_place(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    for module in (blocks, sources):
        monkeypatch.setattr(module, "ROW_BYTES", 10_000)
    _write(service.data_root / f"s.{ending}", ["short", "x" * 9_000, "x" * 10_001])
    with pytest.raises(InvalidRequestError) as refused:
        submit(service, f"s.{ending}")
    assert refused.value.code == "row_too_large"
    place = {"jsonl": "Line 3", "csv": "The record at line 4", "parquet": "Row 2"}[ending.split(".")[0]]
    assert f"{place} has " in str(refused.value)


def _write(path: Path, texts: list[str]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"a": texts}), path)
        return
    lines = ["a", *texts] if ".csv" in path.name else [json.dumps({"a": text}) for text in texts]
    content = "".join(f"{text}\n" for text in lines).encode()
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pa.output_stream(path, compression=compression) as stream:
        stream.write(content)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_of_nothing_but_zeros_is_refused_at_submit_and_never_held_whole(
    service: RunningService, kind: str
) -> None:
    """A megabyte that unpacks to a gigabyte."""
    path = service.data_root / f"s.{kind}.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(256):
            stream.write(bytes(1 << 20) if kind == "jsonl" else b"x" * (1 << 20))
    with pytest.raises(InvalidRequestError) as refused:
        submit(service, path.name)
    assert refused.value.code == "row_too_large"


def test_a_parquet_file_that_repeats_a_long_text_is_read_in_blocks(service: RunningService) -> None:
    """A file of some kilobytes that says 8 GB."""
    path = service.data_root / "s.parquet"
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(8_192, np.int32)), ["x" * (1 << 20)])
    pq.write_table(pa.table({"a": repeated.cast(pa.dictionary(pa.int32(), pa.string()))}), path, store_schema=False)
    assert path.stat().st_size < 1 << 20
    schema = pa.schema([("a", pa.string())])
    with path.open("rb") as stream:
        some = parquet_blocks.parquet_blocks(stream, schema, ["a"], sources.ROWS)
        sizes = [next(some).nbytes for _ in range(3)]
    assert all(blocks.BLOCK_BYTES / 2 < size <= blocks.BLOCK_BYTES + (1 << 20) for size in sizes)


def test_a_template_that_repeats_a_column_is_rendered_in_blocks() -> None:
    rows = sources.SourceRows(pa.record_batch([pa.nulls(200)], ["b"]), pa.record_batch([["x" * 10_000] * 200], ["a"]))
    renderer = rendering.Renderer([rendering.Template.parse("{a}" * 100)], {})
    taken = [(some.stop - some.start, texts[0].nbytes) for some, texts in renderer.render(rows)]
    assert sum(count for count, _ in taken) == 200
    assert all(size <= blocks.BLOCK_BYTES + 10_000 for _, size in taken)
    assert len(taken) > 10


def test_a_prompt_that_no_model_takes_is_its_rows_error_and_the_others_are_asked(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "MOST_BYTES", 1_000)
    pq.write_table(pa.table({"a": ["short", "x" * 1_000, "é" * 500, "x" * 999]}), service.data_root / "s.parquet")
    batch = submit(service, "s.parquet", prompt="{a}!")
    work(service, AnsweringWorker(service))
    found = target(service, batch)
    assert found["a"].to_pylist()[1] == "x" * 1_000
    assert found["llm_status"].to_pylist() == ["success", "error", "error", "success"]
    assert found["llm_error"].to_pylist()[1] == (
        "context_length_exceeded: The prompt has 1,001 bytes, more than the 1,000 that are sent to an engine."
    )
