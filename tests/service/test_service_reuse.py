"""Resume, duplicates and reuse: what is asked of the engine is exactly what had to be computed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.service import result_index
from airflow_batch_llm.service.duty_context import DutyContext
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES_IF_WHOLE
from tests.service.answering import AnsweringWorker

pytestmark = BOTH_STORES_IF_WHOLE


def submit(service: RunningService, texts: Sequence[str], name: str = "s", **options: Any) -> Batch:
    """A planned batch over a table of texts."""
    pq.write_table(pa.table({"text": list(texts)}), service.data_root / f"{name}.parquet")
    of_batch = {key: options.pop(key) for key in ("reuse", "key", "model") if key in options}
    spec = DatasetSpec(
        source=f"{name}.parquet",
        target=f"{name}-out.parquet",
        messages=[Message(role="user", content=options.pop("prompt", "{text}"))],
        overwrite=True,
        **options,
    )
    batch = service.client.submit(BatchCreate(dataset=spec, **{"model": "m", **of_batch}))
    assert service.plan()
    return service.client.get(batch.id)


def answered(service: RunningService, worker: AnsweringWorker, batch: Batch) -> tuple[list[int], list[str | None]]:
    """The rows that were asked for, and the answers in the target."""
    before = len(worker.asked)
    worker.work()
    assert service.assemble()
    target = pq.read_table(service.data_root / str(batch.dataset and batch.dataset.target))
    return sorted(worker.asked[before:]), target["llm_output"].to_pylist()


@pytest.fixture
def worker(service: RunningService) -> AnsweringWorker:
    return AnsweringWorker(service, engine_identity="engine-1")


def test_a_table_with_duplicates_of_which_half_was_done_yesterday_costs_what_is_new(
    service: RunningService, worker: AnsweringWorker
) -> None:
    distinct = [f"text {i}" for i in range(70)]
    shuffled = random.Random(1)
    yesterday = [*distinct[:35], *shuffled.choices(distinct[:35], k=5)]
    rows, _ = answered(service, worker, submit(service, yesterday, "yesterday"))
    assert len(rows) == 35
    today = [*distinct, *shuffled.choices(distinct, k=30)]
    shuffled.shuffle(today)
    batch = submit(service, today, "today")
    known = sum(text in distinct[:35] for text in today)
    new = len(set(today) - set(distinct[:35]))
    assert batch.progress.rows_reused == known
    assert batch.progress.rows_duplicate == len(today) - known - new
    rows, answers = answered(service, worker, batch)
    assert len(rows) == new == 35
    assert len(answers) == len(today)
    for text, answer in zip(today, answers, strict=True):
        assert answer == answers[today.index(text)] is not None
    ended = service.client.get(batch.id)
    assert (ended.request_counts.total, ended.request_counts.completed) == (100, 100)
    assert ended.manifest is not None
    assert (ended.manifest.rows_reused, ended.manifest.rows_duplicate) == (known, len(today) - known - new)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, 0),
        ({"parameters": {"max_tokens": 5}}, 3),
        ({"choices": ["a", "b"]}, 3),
        ({"parameters": {"temperature": 0.5, "seed": 7}}, 3),
        ({"parameters": {"temperature": 0.5}}, 5),
        ({"prompt": "{text}."}, 3),
        ({"reuse": "never"}, 5),
        ({"constants": {"unused": 1}}, 0),
        ({"passthrough": []}, 0),
    ],
)
def test_only_what_must_get_the_same_answer_is_reused_or_answered_once(
    service: RunningService, worker: AnsweringWorker, options: dict[str, Any], asked: int
) -> None:
    texts = ["a", "b", "a", "c", "b"]
    answered(service, worker, submit(service, texts, "first"))
    rows, answers = answered(service, worker, submit(service, texts, "second", **options))
    assert len(rows) == asked
    assert len(answers) == 5
    assert None not in answers


def test_an_engine_that_nobody_knows_is_asked_for_every_row(service: RunningService) -> None:
    worker = AnsweringWorker(service)
    for name in ("first", "second"):
        rows, _ = answered(service, worker, submit(service, ["a", "a"], name))
        assert rows == [0, 1]


def test_another_engine_under_the_same_name_finds_nothing_of_the_first(service: RunningService) -> None:
    first = AnsweringWorker(service, engine_identity="engine-1")
    answered(service, first, submit(service, ["a"], "first"))
    second = AnsweringWorker(service, engine_identity="engine-2")
    rows, _ = answered(service, second, submit(service, ["a"], "second"))
    assert rows == [0]


def test_answers_of_an_engine_that_was_changed_meanwhile_are_not_kept_for_others(service: RunningService) -> None:
    AnsweringWorker(service, engine_identity="engine-1")
    batch = submit(service, ["a"], "first")
    answered(service, AnsweringWorker(service, engine_identity="engine-2"), batch)
    rows, _ = answered(service, AnsweringWorker(service, engine_identity="engine-1"), submit(service, ["a"], "second"))
    assert rows == [0]


def test_a_failed_row_is_answered_for_its_equals_too_and_a_retry_asks_for_it_once(
    service: RunningService, worker: AnsweringWorker
) -> None:
    batch = submit(service, ["a", "b", "a", "b", "c"])
    worker.failing = {1}
    rows, answers = answered(service, worker, batch)
    assert rows == [0, 1, 4]
    assert answers == ["answer 0", None, "answer 0", None, "answer 4"]
    assert service.client.get(batch.id).request_counts.failed == 2
    worker.failing = ()
    again = service.client.retry(batch.id)
    assert service.plan()
    rows, answers = answered(service, worker, service.client.get(again.id))
    assert rows == [1]
    assert answers == ["answer 0", "answer 1", "answer 0", "answer 1", "answer 4"]
    assert service.client.get(again.id).request_counts.failed == 0


def test_a_batch_that_was_cancelled_goes_on_from_its_answers_whoever_shares_them(
    service: RunningService, worker: AnsweringWorker
) -> None:
    batch = submit(service, ["b", "a", "b", "a", "c"], key="k", reuse="auto")
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    done = next(line for line in lines if line.row == 1)
    worker.link.extend(claim, [worker.store(claim, 0, [done])])
    service.client.cancel(batch.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    target = pq.read_table(service.data_root / "s-out.parquet")
    assert target["llm_output"].to_pylist() == [None, "answer 1", None, "answer 1", None]
    assert target["llm_status"].to_pylist() == ["cancelled", "success", "cancelled", "success", "cancelled"]
    service.state.index_files.forget(batch.id)
    again = service.client.submit(BatchCreate(dataset=batch.dataset, model="m", key="k"))
    assert service.plan()
    rows, answers = answered(service, worker, service.client.get(again.id))
    assert rows == [0, 4]
    assert answers == ["answer 0", "answer 1", "answer 0", "answer 1", "answer 4"]


def test_results_are_not_reused_after_their_time(service: RunningService, worker: AnsweringWorker) -> None:
    pq.write_table(pa.table({"text": ["a"]}), service.data_root / "s.parquet")
    batch = submit(service, ["a"], "first")
    answered(service, worker, batch)
    service.state.index_files.forget(batch.id)
    rows, _ = answered(service, worker, submit(service, ["a"], "second"))
    assert rows == [0]


def test_many_index_files_become_one_and_know_the_same(service: RunningService, worker: AnsweringWorker) -> None:
    count = result_index.MERGED_AT + 1
    batches = []
    for number in range(count):
        batches.append(submit(service, [f"text {number}", "all have this"], f"t{number}"))
        answered(service, worker, batches[-1])
    files, living = service.state.index_files.living("default")
    assert sorted(file.level for file in files) == [0, 1]
    assert len(living) == count
    stored = list(service.state.storage.list("index"))
    assert sorted(stored) == sorted(file.storage_key for file in files)
    again = submit(service, [f"text {number}" for number in range(count)], "again")
    assert again.progress.rows_reused == count
    gone = batches[0]
    service.state.index_files.forget(gone.id)
    without = submit(service, [f"text {number}" for number in range(count)], "without")
    assert without.progress.rows_reused == count - 1
    for batch in batches:
        service.state.index_files.forget(batch.id)
    context = DutyContext.open(service.settings)
    context.index("default").tidy()
    assert list(service.state.storage.list("index")) == []


def test_one_team_knows_nothing_of_another(service: RunningService, worker: AnsweringWorker) -> None:
    answered(service, worker, submit(service, ["a"], "first"))
    assert service.state.index_files.living("another") == ([], [])
    context = DutyContext.open(service.settings)
    secrets = {context.team_secrets.get("default"), context.team_secrets.get("another")}
    assert len(secrets) == 2
    assert context.team_secrets.get("default") in secrets


def test_alike_rows_are_asked_side_by_side_and_long_chunks_first(service: RunningService) -> None:
    worker = AnsweringWorker(service, engine_identity="engine-1")
    service.settings = dataclasses.replace(service.settings, chunk_rows=8, chunk_tokens=3_000)
    texts = [f"{'long ' * 300 if i % 3 == 0 else 'short '}{i % 5}" for i in range(60)]
    texts = [f"{text}{' more' * 300 if 'long' in text else ''} {i:03d}" for i, text in enumerate(texts)]
    random.Random(2).shuffle(texts)
    submit(service, texts, parameters={"max_tokens": 1})
    claimed = []
    while (work := worker.claim()) is not None:
        claim, lines = work
        claimed.append([texts[line.row] for line in lines])
        worker.link.commit(claim, [worker.store(claim, 0, lines)])
    assert sorted(text for chunk in claimed for text in chunk) == sorted(texts)
    assert all(len(chunk) <= 8 for chunk in claimed)
    has_long = [any("long" in text for text in chunk) for chunk in claimed]
    assert has_long == sorted(has_long, reverse=True)
    for beginning in {text[:1_501] if "long" in text else text[:7] for text in texts}:
        having = [number for number, chunk in enumerate(claimed) if any(text.startswith(beginning) for text in chunk)]
        assert having == list(range(having[0], having[-1] + 1))
        between = [text for number in having[1:-1] for text in claimed[number]]
        assert all(text.startswith(beginning) for text in between)


def test_a_cancelled_batch_counts_what_its_target_has_duplicates_of_done_rows_among_it(
    service: RunningService,
) -> None:
    worker = AnsweringWorker(service, engine_identity="engine-1", failing={0})
    batch = submit(service, ["refused"] * 4 + ["equal"] * 2 + [f"text {i}" for i in range(4)])
    claimed = worker.claim()
    assert claimed is not None
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, [line for line in lines if line.row in (0, 4)])])
    service.client.cancel(batch.id)
    worker.link.release(claim, [], outcome="stopped")
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert ended.manifest is not None
    assert ended.manifest.counts == {"success": 2, "error": 4, "cancelled": 4}
    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 2, 4)
    assert (ended.progress.rows_done, ended.progress.rows_failed) == (6, 4)
