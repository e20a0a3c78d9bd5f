"""What a page of rows reads does not grow with its batch: counted in directories, and by what a server of S3 sends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import free_port

from airflow_batch_llm.service import target_writers
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.s3_upload import upload
from airflow_batch_llm.wire import Batch
from tests.conftest import RunningService, running_service
from tests.s3_server import Bucket
from tests.service.answering import AnsweringWorker
from tests.service.counted_reads import CountedReads
from tests.service.looking import rows, submit

ROWS = 5_000
"""Of a kilobyte each, that hardly compress: source, chunks, staged rows and target have some three megabytes each."""
PARTS = 50
MOST = 3_500_000
"""Bytes of a page: a chunk, some row groups of half a megabyte, and what a reader of S3 takes at once beyond them."""

Taken = Callable[[], int]


@pytest.fixture(params=["directory", "s3"])
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunningService, str, Taken]]:
    """A service, where its tables are, and how many bytes were read since the last look."""
    (tmp_path / "data").mkdir()
    if request.param == "directory":
        service = request.getfixturevalue("service")
        _write(service.data_root / "s.parquet")
        yield service, "", CountedReads(request.getfixturevalue("monkeypatch")).taken
        return
    bucket: Bucket = request.getfixturevalue("s3")
    _write(tmp_path / "s.parquet")
    upload(tmp_path / "s.parquet", bucket.name, "lake/s.parquet")
    settings = ServiceSettings(
        home=tmp_path / "home",
        data_roots=(tmp_path / "data",),
        data_prefixes=(bucket.uri("lake"),),
        storage_url=bucket.uri("own/bytes"),
        port=free_port(),
    )

    def taken() -> int:
        sent = sum(request.sent for request in bucket.server.requests if request.method == "GET")
        bucket.server.requests.clear()
        return sent

    state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as service:
        yield service, f"{bucket.uri('lake')}/", taken


def _write(path: Path) -> None:
    """In the order in which they are asked."""
    noise = random.Random(1)
    texts = [f"{number:06} {noise.randbytes(500).hex()}" for number in range(ROWS)]
    pq.write_table(pa.table({"text": texts, "n": range(ROWS)}), path, row_group_size=500)


def test_a_page_of_rows_reads_a_few_of_a_batchs_bytes(
    counted: tuple[RunningService, str, Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_writers, "GROUP_BYTES", 1 << 19)  # so that there are several without gigabytes
    service, place, taken = counted
    batch = submit(service, source=f"{place}s.parquet", target=f"{place}t.parquet")
    assert AnsweringWorker(service, part_rows=100).work() == ROWS
    assert len(service.state.chunks.part_keys(batch.id, offset=0, limit=1_000)) >= PARTS
    taken()
    for after in (None, "part-25.50", "part-49.80"):
        assert _page(service, batch, taken, after) < MOST
    assert service.assemble()
    for after in (None, "line-2499.0", "line-4980.0"):
        assert _page(service, batch, taken, after) < MOST // 2


def _page(service: RunningService, batch: Batch, taken: Taken, after: str | None) -> int:
    taken()
    page = rows(service, batch, **({} if after is None else {"after": after}))
    assert len(page["data"]) == 10
    assert all(row["prompt"] and row["input"] and row["missing"] is None for row in page["data"])
    return taken()
