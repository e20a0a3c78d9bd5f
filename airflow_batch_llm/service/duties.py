"""One round of a duty: plan or assemble one batch, under a lease, so that any process may die at any point."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from airflow_batch_llm import clock
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import BatchStatus, DutyKind, RowStatus
from airflow_batch_llm.service.assembler import Assembler, PartFile, stored_results
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.planner import Planner
from airflow_batch_llm.service.spec import check_dataset, content_sha256
from airflow_batch_llm.service.targets import (
    TargetTakenError,
    beside,
    check_free,
    manifest_path,
    publish,
    sha256_of,
)
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage.base import Storage
from airflow_batch_llm.store.batches import Batches
from airflow_batch_llm.store.chunks import Chunks
from airflow_batch_llm.store.database import StoreTroubleError
from airflow_batch_llm.store.duties import Duties, Duty, DutyLostError
from airflow_batch_llm.store.workers import Workers
from airflow_batch_llm.wire import DatasetSpec, Manifest, TargetFile
from airflow_batch_llm.worker_wire import ResultLine

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 10.0
"""How long a duty that met trouble (a full disk, a target that was taken) waits before it is tried again."""


@dataclass
class DutyRunner:
    """Does the duties of one kind, one batch at a time."""

    kind: DutyKind
    holder: str
    settings: ServiceSettings
    duties: Duties
    batches: Batches
    chunks: Chunks
    workers: Workers
    storage: Storage

    def run_once(self) -> bool:
        """Does the next due duty, if there is one; gives whether there was."""
        lease_seconds = self.settings.duty_lease_seconds
        if not self.duties.due(self.kind):
            return False
        duty = self.duties.claim(self.kind, holder=self.holder, lease_seconds=lease_seconds)
        if duty is None:
            return False
        log.info("claimed %s of %s, attempt %d", duty.kind, duty.batch_id, duty.attempt)
        with self._heartbeat(duty, lease_seconds):
            self._do(duty)
        return True

    def _do(self, duty: Duty) -> None:
        batch = self.batches.for_duty(duty)
        try:
            if self.kind == DutyKind.PLAN:
                self._plan(duty, batch)
            else:
                self._assemble(duty, batch)
        except DutyLostError as error:
            log.info("dropped %s of %s: %s", duty.kind, duty.batch_id, error)
            self.duties.put_off(duty, trouble=None, seconds=0.0)
        except Exception as error:  # whatever it is, its batch must say so, and the others must go on
            log.exception("put off %s of %s", duty.kind, duty.batch_id)
            self._put_off(duty, batch, error)

    def _plan(self, duty: Duty, batch: Mapping[str, Any]) -> None:
        prefix = f"batches/{duty.batch_id}/plan-{duty.attempt}"
        try:
            plan = self._planner(batch, prefix).plan()
            self._check_unchanged(batch)
        except InvalidRequestError as error:
            self.storage.delete_prefix(prefix)
            self.batches.fail(duty, [{"code": error.code, "message": _said(error), "param": error.param, "line": None}])
            log.info("failed %s: %s", duty.batch_id, error.code)
            return
        self.batches.activate(duty, plan)
        for attempt in range(1, duty.attempt):  # what planners that died have staged
            self.storage.delete_prefix(f"batches/{duty.batch_id}/plan-{attempt}")
        log.info("planned %s: %d rows in %d chunks", duty.batch_id, plan.rows_total, len(plan.chunks))

    def _planner(self, batch: Mapping[str, Any], prefix: str) -> Planner:
        spec = DatasetSpec.model_validate(batch["dataset"])
        return Planner(
            storage=self.storage,
            prefix=prefix,
            dataset=check_dataset(spec, self._places, owners=_owners(batch)),
            spec=spec,
            chunk_rows=self.settings.chunk_rows,
            chunk_tokens=self.settings.chunk_tokens,
            done_before=self._done_before(batch),
        )

    def _done_before(self, batch: Mapping[str, Any]) -> Iterator[ResultLine]:
        before = self.batches.generation_before(batch)
        if before is not None:
            for lines in stored_results(self.storage, before["plan_key"], self._parts(before)):
                yield from lines

    def _parts(self, batch: Mapping[str, Any]) -> list[PartFile]:
        return [
            PartFile(part["storage_key"], part["sha256"], part["rows"])
            for part in self.chunks.parts_of_batch(batch["id"])
        ]

    def _check_unchanged(self, batch: Mapping[str, Any]) -> None:
        """What was read must be what was submitted: a source that changed meanwhile is a plan of nobody's table."""
        spec = DatasetSpec.model_validate(batch["dataset"])
        path = self._places.resolve(spec.source, param="dataset.source")
        if content_sha256(spec, batch["model"], batch["endpoint"], path) != batch["content_sha256"]:
            raise InvalidRequestError(
                f"Source {path} has changed since the batch was submitted. Nothing was run. Submit it again.",
                code="source_changed",
                param="dataset.source",
            )

    def _assemble(self, duty: Duty, batch: Mapping[str, Any]) -> None:
        if batch["status"] == BatchStatus.CANCELLING and self.batches.superseded(batch):
            self.batches.finish(duty, None)
            log.info("cancelled %s without a target: a newer batch has taken it over", duty.batch_id)
            return
        spec = DatasetSpec.model_validate(batch["dataset"])
        target = self._places.resolve(spec.target, param="dataset.target")
        assembler = self._assembler(batch, spec)
        with beside(target, duty.batch_id) as new:
            assembler.assemble(new, target.suffix.lower())
            file = TargetFile(uri=str(target), rows=assembler.rows, bytes=new.stat().st_size, sha256=sha256_of(new))
            manifest = self._manifest(batch, spec, target, file, assembler)
            self._publish(batch, spec, new, target, file)
        self._write_manifest(target, manifest)
        self.batches.finish(duty, manifest.model_dump(mode="json"))
        log.info("%s %s: %d rows", manifest.status, duty.batch_id, manifest.rows)

    def _assembler(self, batch: Mapping[str, Any], spec: DatasetSpec) -> Assembler:
        cancelled = batch["status"] == BatchStatus.CANCELLING
        return Assembler(
            storage=self.storage,
            prefix=batch["plan_key"],
            parts=self._parts(batch),
            rows=batch["rows_total"],
            undone=RowStatus.CANCELLED if cancelled else None,
            kept=spec.passthrough,
        )

    def _manifest(
        self, batch: Mapping[str, Any], spec: DatasetSpec, target: Path, file: TargetFile, assembler: Assembler
    ) -> Manifest:
        cancelled = batch["status"] == BatchStatus.CANCELLING
        return Manifest(
            batch_id=batch["id"],
            key=batch["key"],
            series=batch["series"],
            generation=batch["generation"],
            status=BatchStatus.CANCELLED if cancelled else BatchStatus.COMPLETED,
            model=batch["model"],
            engine_identity=self.workers.identity_of(batch["model"]),
            source=spec.source,
            format=target.suffix.lower().removeprefix("."),
            files=[file],
            rows=assembler.rows,
            counts={status: assembler.counts[status] for status in RowStatus if assembler.counts[status]},
            prompt_tokens=batch["prompt_tokens"],
            completion_tokens=batch["completion_tokens"],
            gpu_seconds=round(batch["gpu_seconds"], 3),
            created_at=int(batch["created_at"]),
            finished_at=int(clock.now().timestamp()),
        )

    def _publish(self, batch: Mapping[str, Any], spec: DatasetSpec, new: Path, target: Path, file: TargetFile) -> None:
        """Moves the target to its place, unless an attempt that died right after doing so has done it."""
        if target.exists() and sha256_of(target) == file.sha256:
            return
        try:
            check_free(target, overwrite=spec.overwrite, owners=_owners(batch))
        except InvalidRequestError as error:
            raise TargetTakenError(_said(error)) from error
        publish(new, target, replace=target.exists())

    def _write_manifest(self, target: Path, manifest: Manifest) -> None:
        path = manifest_path(target)
        with beside(path, manifest.batch_id) as new:
            new.write_text(manifest.model_dump_json(indent=2) + "\n")
            publish(new, path, replace=True)

    def _put_off(self, duty: Duty, batch: Mapping[str, Any], error: Exception) -> None:
        trouble = f"The {duty.kind} duty met trouble and is tried again every {RETRY_SECONDS:.0f} s: {_said(error)}"
        if batch["status"] == BatchStatus.CANCELLING:
            # A cancel must end even where its target cannot be written; the parts stay in storage.
            self.batches.finish(duty, None, trouble=f"No target was written: {_said(error)}")
        else:
            self.duties.put_off(duty, trouble=trouble, seconds=RETRY_SECONDS)

    @property
    def _places(self) -> Places:
        return Places(self.settings.data_roots)

    @contextmanager
    def _heartbeat(self, duty: Duty, lease_seconds: float) -> Iterator[None]:
        """Extends the duty's lease from a thread while the body works."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(lease_seconds / 3):
                try:
                    self.duties.extend(duty, lease_seconds=lease_seconds)
                except DutyLostError:
                    return  # the work goes on to its end, where the same fence refuses its effect
                except StoreTroubleError:
                    log.warning("could not extend %s of %s", duty.kind, duty.batch_id, exc_info=True)

        thread = threading.Thread(target=beat, name=f"lease of {duty.kind} {duty.batch_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _owners(batch: Mapping[str, Any]) -> set[str]:
    return {batch["key"], batch["series"]} - {None}


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})." if error.filename else f"{error.strerror}."
    return str(error).removesuffix(" Nothing was submitted.") or type(error).__name__
