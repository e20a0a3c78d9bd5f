"""The worker's HTTP API keeps the fence: late, repeated and wrong calls change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.errors import ConflictError, LeaseLostError
from airflow_batch_llm.service.suspects import BARREN_ATTEMPTS
from airflow_batch_llm.wire import Batch
from airflow_batch_llm.worker_wire import Claim, RowLine
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.test_service_bad_input import submit

pytestmark = BOTH_STORES

Claimed = tuple[Claim, list[RowLine]]


@pytest.fixture
def batch(service: RunningService) -> Batch:
    pq.write_table(pa.table({"a": list(range(4))}), service.data_root / "s.parquet")
    submitted = submit(service, "s.parquet")
    assert service.plan()
    return submitted


@pytest.fixture
def worker(service: RunningService, batch: Batch) -> AnsweringWorker:
    return AnsweringWorker(service)


@pytest.fixture
def claimed(worker: AnsweringWorker) -> Claimed:
    found = worker.claim()
    assert found is not None
    return found


def _rows_done(service: RunningService, batch: Batch) -> int:
    return service.client.get(batch.id).progress.rows_done


def test_a_commit_whose_answer_was_lost_may_be_said_again(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    parts = [worker.store(claim, 0, lines)]
    worker.link.commit(claim, parts)
    worker.link.commit(claim, parts)
    done = service.client.get(batch.id)
    assert (done.status, done.progress.rows_done, done.progress.chunks_done) == ("finalizing", 4, 1)


@pytest.mark.parametrize("verb", ["rows", "begin", "put_part", "extend", "commit", "release"])
def test_a_worker_whose_chunk_was_handed_on_can_neither_read_nor_write_it(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed, verb: str
) -> None:
    stale, lines = claimed
    parts = [worker.store(stale, 0, lines)]
    service.end_leases()
    current = worker.claim()
    assert current is not None
    calls: dict[str, Callable[[], object]] = {
        "rows": lambda: worker.link.rows(stale),
        "begin": lambda: worker.link.begin(stale),
        "put_part": lambda: worker.link.put_part(stale, 1, b"late"),
        "extend": lambda: worker.link.extend(stale, parts),
        "commit": lambda: worker.link.commit(stale, parts),
        "release": lambda: worker.link.release(stale, parts, outcome="drained"),
    }
    with pytest.raises(LeaseLostError):
        calls[verb]()
    assert _rows_done(service, batch) == 0
    worker.link.commit(current[0], [worker.store(current[0], 0, current[1])])
    assert _rows_done(service, batch) == 4


def test_a_part_counts_only_if_it_lies_in_storage_as_it_was_said(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    record = worker.store(claim, 0, lines)
    for wrong in (record.model_copy(update={"sha256": "0" * 64}), record.model_copy(update={"number": 7})):
        with pytest.raises(ConflictError, match="Store it again") as caught:
            worker.link.commit(claim, [wrong])
        assert caught.value.code == "part_not_stored"
    assert _rows_done(service, batch) == 0
    worker.link.commit(claim, [record])
    assert _rows_done(service, batch) == 4


def test_a_committed_part_cannot_be_overwritten(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    record = worker.store(claim, 0, lines)
    worker.link.extend(claim, [record])
    worker.link.put_part(claim, 0, b"something else under the same number")
    worker.link.commit(claim, [record])
    assert service.assemble()
    ended = service.client.get(batch.id)
    assert (ended.status, ended.request_counts.completed) == ("completed", 4)


def test_an_attempt_gets_only_the_rows_that_no_committed_part_has(
    service: RunningService, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines[:1])])
    worker.store(claim, 1, lines[1:2])  # stored, and never committed
    service.end_leases()
    again = worker.claim()
    assert again is not None
    assert (again[0].attempt, again[0].done) == (2, [lines[0].row])
    assert {line.row for line in again[1]} == {line.row for line in lines[1:]}


def test_a_worker_is_told_to_stop_when_its_batch_is_cancelled(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, _ = claimed
    assert worker.link.extend(claim, []).stop is False
    service.client.cancel(batch.id)
    assert worker.link.extend(claim, []).stop is True


def test_a_row_that_was_answered_twice_never_makes_a_target(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    worker.link.commit(claim, [worker.store(claim, 0, [*lines[:3], lines[0]])])
    assert service.assemble()
    held = service.client.get(batch.id)
    assert held.status == "finalizing"
    assert "4 results for 3 different rows were committed" in (held.progress.waiting_for or "")
    assert not (service.data_root / "target.parquet").exists()


def test_a_chunk_whose_rows_are_all_done_is_ended_however_often_that_failed_before(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines)])
    for _ in range(BARREN_ATTEMPTS + 2):
        service.end_leases()
        again = worker.claim()
        assert again is not None
        assert again[1] == []
    worker.link.commit(again[0], [])
    assert service.client.get(batch.id).status == "finalizing"


def test_parts_with_more_rows_than_the_chunk_has_are_refused(
    service: RunningService, batch: Batch, worker: AnsweringWorker, claimed: Claimed
) -> None:
    claim, lines = claimed
    worker.link.extend(claim, [worker.store(claim, 0, lines[:3])])
    for call in (worker.link.commit, worker.link.extend):
        with pytest.raises(ConflictError, match="has 4 rows, of which 3 have a committed result: parts with 4 more"):
            call(claim, [worker.store(claim, 1, lines)])
    assert _rows_done(service, batch) == 3
    worker.link.commit(claim, [worker.store(claim, 2, lines[3:])])
    assert _rows_done(service, batch) == 4
