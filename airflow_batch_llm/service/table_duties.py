"""Planning and assembling a batch of a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_batch_llm import clock
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import BatchStatus, RowStatus
from airflow_batch_llm.service.duty_context import DutyContext, ends_as, undone
from airflow_batch_llm.service.places import Places
from airflow_batch_llm.service.spec import check_dataset, content_sha256
from airflow_batch_llm.service.table_assembler import Assembler
from airflow_batch_llm.service.table_planner import Planner
from airflow_batch_llm.service.targets import (
    TargetTakenError,
    beside,
    check_free,
    manifest_path,
    publish,
    sha256_of,
)
from airflow_batch_llm.store.duties import Duty
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.wire import DatasetSpec, Manifest, TargetFile

log = logging.getLogger(__name__)


def plan_table(context: DutyContext, batch: Mapping[str, Any], prefix: str) -> Plan:
    """Stages the plan. Raises :class:`InvalidRequestError` where the source cannot be planned, or has changed."""
    spec = DatasetSpec.model_validate(batch["dataset"])
    places = Places(context.settings.data_roots)
    dataset = check_dataset(spec, places, owners=_owners(batch))
    plan = Planner(context.stage(prefix), dataset, spec, context.done_before(batch)).plan()
    _check_unchanged(spec, places, batch)
    return plan


def assemble_table(context: DutyContext, duty: Duty, batch: Mapping[str, Any]) -> None:
    """Writes the target and its manifest, and ends the batch with them."""
    if batch["status"] == BatchStatus.CANCELLING and context.life.superseded(batch):
        context.life.finish(duty, BatchStatus.CANCELLED)
        log.info("cancelled %s without a target: a newer batch has taken it over", duty.batch_id)
        return
    spec = DatasetSpec.model_validate(batch["dataset"])
    target = Places(context.settings.data_roots).resolve(spec.target, param="dataset.target")
    assembler = _assembler(context, batch, spec)
    with beside(target, duty.batch_id) as new:
        assembler.assemble(new, target.suffix.lower())
        file = TargetFile(uri=str(target), rows=assembler.rows, bytes=new.stat().st_size, sha256=sha256_of(new))
        manifest = _manifest(context, batch, spec, target, file, assembler)
        _publish(batch, spec, new, target, file)
    _write_manifest(target, manifest)
    context.life.finish(duty, manifest.status, manifest=manifest.model_dump(mode="json"))
    log.info("%s %s: %d rows", manifest.status, duty.batch_id, manifest.rows)


def _check_unchanged(spec: DatasetSpec, places: Places, batch: Mapping[str, Any]) -> None:
    """What was read must be what was submitted: a source that changed meanwhile is a plan of nobody's table."""
    path = places.resolve(spec.source, param="dataset.source")
    if content_sha256(spec, batch["model"], batch["endpoint"], path) != batch["content_sha256"]:
        raise InvalidRequestError(
            f"Source {path} has changed since the batch was submitted. Nothing was run. Submit it again.",
            code="source_changed",
            param="dataset.source",
        )


def _assembler(context: DutyContext, batch: Mapping[str, Any], spec: DatasetSpec) -> Assembler:
    return Assembler(
        storage=context.storage,
        prefix=batch["plan_key"],
        parts=context.parts(batch),
        rows=batch["rows_total"],
        undone=undone(batch),
        kept=spec.passthrough,
    )


def _manifest(
    context: DutyContext,
    batch: Mapping[str, Any],
    spec: DatasetSpec,
    target: Path,
    file: TargetFile,
    assembler: Assembler,
) -> Manifest:
    return Manifest(
        batch_id=batch["id"],
        key=batch["key"],
        series=batch["series"],
        generation=batch["generation"],
        status=ends_as(batch),
        model=batch["model"],
        engine_identity=context.workers.identity_of(batch["model"]),
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


def _publish(batch: Mapping[str, Any], spec: DatasetSpec, new: Path, target: Path, file: TargetFile) -> None:
    """Moves the target to its place, unless an attempt that died right after doing so has done it."""
    if target.exists() and sha256_of(target) == file.sha256:
        return
    try:
        check_free(target, overwrite=spec.overwrite, owners=_owners(batch))
    except InvalidRequestError as error:
        raise TargetTakenError(error.message.removesuffix(" Nothing was submitted.")) from error
    publish(new, target, replace=target.exists())


def _write_manifest(target: Path, manifest: Manifest) -> None:
    path = manifest_path(target)
    with beside(path, manifest.batch_id) as new:
        new.write_text(manifest.model_dump_json(indent=2) + "\n")
        publish(new, path, replace=True)


def _owners(batch: Mapping[str, Any]) -> set[str]:
    return {batch["key"], batch["series"]} - {None}
