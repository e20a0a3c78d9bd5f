"""Tables through a pool with real vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool import Pool, embedding_worker

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.models import BatchStatus
from airflow_batch_llm.wire import Batch, BatchCreate, DatasetSpec, Message
from tests.conftest import PACKAGES, eventually


def sample_texts(rows: int) -> list[str]:
    """Summaries of the sample table, as often as needed; no two rows are the same."""
    summaries = pq.read_table(PACKAGES, columns=["summary"])["summary"].to_pylist()
    return [f"{row} {summaries[row % len(summaries)]}" for row in range(rows)]


@dataclass
class Tables:
    """Submits tables to a pool and reads what came out."""

    pool: Pool
    client: BatchClient

    def submit(
        self, name: str, texts: Sequence[str], *, priority: int = 0, payload: Sequence[str] | None = None, **spec: Any
    ) -> str:
        """A batch over a table with the columns ``number``, ``text`` and perhaps ``payload``; gives its id."""
        columns = {"number": range(len(texts)), "text": texts} | ({"payload": payload} if payload else {})
        pq.write_table(pa.table(columns), self.pool.data_root / f"{name}.parquet")
        dataset = DatasetSpec(
            source=f"{name}.parquet",
            target=f"{name}-out.parquet",
            messages=[Message(role="user", content="{text}")],
            **spec,
        )
        # Each of these counts what its own engine does, whatever another test asked before.
        create = BatchCreate(dataset=dataset, model=self.pool.model, priority=priority, reuse="never")
        return self.client.submit(create).id

    def get(self, batch_id: str) -> Batch | None:
        """The batch, or nothing while the service is away."""
        try:
            return self.client.get(batch_id)
        except NoAnswerError:
            return None

    def until(self, batch_id: str, *, rows_done: int) -> Batch:
        """Waits until at least that many rows are committed and the batch goes on."""

        def look() -> Batch | None:
            batch = self.get(batch_id)
            assert batch is None or not batch.status.ended, f"{batch_id} had ended before {rows_done} rows were seen"
            return batch if batch and batch.progress.rows_done >= rows_done else None

        return eventually(look, seconds=120, what=f"{rows_done} rows of {batch_id}")

    def ended(self, batch_id: str, *, seconds: float = 180.0) -> Batch:
        def look() -> Batch | None:
            batch = self.get(batch_id)
            return batch if batch and batch.status.ended else None

        return eventually(look, seconds=seconds, what=f"the end of {batch_id}")

    def target(self, batch_id: str, status: BatchStatus = BatchStatus.COMPLETED) -> list[dict[str, Any]]:
        """The target's rows, after a check that there is one for each source row, in order, and that counts add up."""
        batch = self.ended(batch_id)
        assert batch.status == status, batch.errors or batch.progress.waiting_for
        assert batch.dataset is not None
        assert batch.manifest is not None
        target = pq.read_table(self.pool.data_root / batch.dataset.target)
        source = pq.read_table(self.pool.data_root / batch.dataset.source)
        assert target.select(source.column_names).equals(source)
        rows: list[dict[str, Any]] = target.drop_columns(["payload"] if "payload" in source.column_names else [])
        rows = rows.to_pylist()  # type: ignore[attr-defined]
        by_status = {name: sum(row["llm_status"] == name for row in rows) for name in batch.manifest.counts}
        assert by_status == batch.manifest.counts
        assert sum(by_status.values()) == source.num_rows == batch.manifest.rows
        assert batch.request_counts.completed == by_status.get("success", 0)
        assert sum(row["llm_completion_tokens"] or 0 for row in rows) == batch.manifest.completion_tokens
        return rows


@pytest.fixture
def tables(pool: Pool) -> Iterator[Tables]:
    with pool.client() as client:
        yield Tables(pool, client)


@pytest.fixture(scope="session")
def embeddings(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The name of a model that makes vectors, and the socket of its engine."""
    folder = tmp_path_factory.mktemp("embeddings")
    with embedding_worker(pool, folder) as name, pool.client() as client:
        eventually(lambda: name in [model.id for model in client.models().data], seconds=180, what="the second worker")
        yield name, folder / "workers" / "embeddings" / "engine.sock"
