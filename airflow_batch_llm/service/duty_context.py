"""What planning and assembling work with, whatever the batch is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from airflow_batch_llm.models import BatchStatus, RowStatus
from airflow_batch_llm.service.parts import PartFile, stored_results
from airflow_batch_llm.service.places import TeamPlaces
from airflow_batch_llm.service.plan_stage import PlanStage
from airflow_batch_llm.service.result_index import ResultIndex
from airflow_batch_llm.service.source_files import SourceFinder
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage import open_storage
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.chunks import Chunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.files import Files
from airflow_batch_llm.store.index_files import IndexFiles
from airflow_batch_llm.store.life import BatchLife
from airflow_batch_llm.store.pace import PaceOfBatches
from airflow_batch_llm.store.target_notes import TargetNotes
from airflow_batch_llm.store.team_secrets import TeamSecrets
from airflow_batch_llm.store.workers import Workers
from airflow_batch_llm.worker_wire import ResultLine


@dataclass(frozen=True)
class DutyContext:
    """The stores, the storage and the settings of a process that does duties."""

    settings: ServiceSettings
    duties: Duties
    life: BatchLife
    target_notes: TargetNotes
    chunks: Chunks
    files: Files
    workers: Workers
    team_secrets: TeamSecrets
    index_files: IndexFiles
    pace: PaceOfBatches
    storage: Storage
    places: TeamPlaces

    @classmethod
    def open(cls, settings: ServiceSettings) -> Self:
        database = Database(settings.store_url)
        return cls(
            settings=settings,
            duties=Duties(database),
            life=BatchLife(database),
            target_notes=TargetNotes(database),
            chunks=Chunks(database),
            files=Files(database),
            workers=Workers(database),
            team_secrets=TeamSecrets(database),
            index_files=IndexFiles(database),
            pace=PaceOfBatches(database),
            storage=open_storage(settings),
            places=TeamPlaces(settings),
        )

    def stage(self, prefix: str) -> PlanStage:
        return PlanStage(self.storage, prefix, self.settings.chunk_rows, self.settings.chunk_tokens)

    def index(self, team: str) -> ResultIndex:
        return ResultIndex(self.storage, self.index_files, team)

    def finder(self, team: str) -> SourceFinder:
        """Finds the files of a team's source. Uploaded ones count even once deleted: the batch was accepted."""
        return SourceFinder(self.places.of(team), self.storage, self.files.stored)

    def parts(self, batch: Mapping[str, Any]) -> Iterator[PartFile]:
        """All that was committed of a batch."""
        for part in self.chunks.parts_of_batch(batch["id"]):
            yield PartFile(part.storage_key, part.sha256, part.rows)

    def done_before(self, batch: Mapping[str, Any]) -> Iterator[ResultLine]:
        """The results of the generation that this batch goes on from."""
        before = self.life.generation_before(batch)
        if before is not None:
            for lines in stored_results(self.storage, before["plan_key"], self.parts(before)):
                yield from lines


def ends_as(batch: Mapping[str, Any]) -> BatchStatus:
    """What a batch whose results are being assembled will be called."""
    if batch["status"] == BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    return BatchStatus.EXPIRED if batch["expiring"] else BatchStatus.COMPLETED


def undone(batch: Mapping[str, Any]) -> RowStatus | None:
    """What a row without a result is called in such a batch; None where every row must have one."""
    return {BatchStatus.CANCELLED: RowStatus.CANCELLED, BatchStatus.EXPIRED: RowStatus.EXPIRED}.get(ends_as(batch))
