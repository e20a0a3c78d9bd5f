"""Planning and assembling a batch of a table."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from airflow_batch_llm import clock
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import FAILED, TOKENIZE, BatchStatus, RowStatus
from airflow_batch_llm.service.asked_rows import RowKeys, determined
from airflow_batch_llm.service.duty_context import DutyContext, ends_as, undone
from airflow_batch_llm.service.estimating import ESTIMATE_FILE, Counted, Pace, estimate, same_question
from airflow_batch_llm.service.parts import stored_results
from airflow_batch_llm.service.publishing import Publisher
from airflow_batch_llm.service.quarantine import FailingRows, quarantine_of
from airflow_batch_llm.service.spec import (
    CheckedDataset,
    check_dataset,
    content_sha256,
    output_columns,
    request_parameters,
)
from airflow_batch_llm.service.table_assembler import Assembler
from airflow_batch_llm.service.table_planner import Planner
from airflow_batch_llm.service.targets import Owner, Target, read_manifest, sha256_at, target_of
from airflow_batch_llm.store.duties import Duty
from airflow_batch_llm.store.life import Plan
from airflow_batch_llm.wire import DatasetSpec, Manifest, TargetFile

log = logging.getLogger(__name__)

ENDING_SECONDS: Final = 0.5
"""How often a duty looks whether the batch that it waits for has ended."""


def plan_table(context: DutyContext, batch: Mapping[str, Any], prefix: str) -> Plan:
    """Stages the plan. Raises :class:`InvalidRequestError` where the source cannot be planned, or has changed."""
    spec = DatasetSpec.model_validate(batch["dataset"])
    finder = context.finder(batch["team"])
    dataset = check_dataset(spec, batch["endpoint"], finder, owner=_owner(context, batch), writes=not batch["dry_run"])
    identity = context.workers.identity_of(batch["team"], batch["model"])
    planner = Planner(
        context.stage(prefix),
        dataset,
        spec,
        batch["endpoint"],
        keys=_keys(context, batch, spec, identity),
        index=context.index(batch["team"]),
        dry=batch["dry_run"],
        tokenizes=any(
            batch["model"] == served.model and TOKENIZE in served.endpoints
            for served in context.workers.served(batch["team"])
        ),
        canary_rows=batch["canary_rows"],
        done_before=() if batch["dry_run"] else context.done_before(batch),
    )
    plan = planner.plan(engine_identity=identity)
    _check_unchanged(spec, dataset, context, batch)
    return plan


def assemble_table(context: DutyContext, duty: Duty, batch: Mapping[str, Any]) -> None:
    """Writes the target and its manifest, and ends the batch with them."""
    if (other := context.life.still_publishing(batch)) is not None:
        trouble = f"It waits until {other} has ended, whose target it takes over."
        context.duties.put_off(duty, trouble=trouble, seconds=ENDING_SECONDS)
        return
    if batch["status"] == BatchStatus.CANCELLING and batch["superseded"] and not _has_published(context, batch):
        context.life.finish(duty, BatchStatus.CANCELLED)
        log.info("cancelled %s without a target: a newer batch has taken it over", duty.batch_id)
        return
    spec = DatasetSpec.model_validate(batch["dataset"])
    if batch["dry_run"]:
        _finish_dry_run(context, duty, batch, spec)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assembler = Assembler(
            storage=context.storage,
            prefix=batch["plan_key"],
            parts=context.parts(batch),
            rows=batch["rows_total"],
            undone=undone(batch),
            output=output_columns(spec, batch["endpoint"]),
            folder=folder,
            kept=spec.passthrough,
        )
        assembler.load()
        with closing(assembler):
            manifest = _written(context, duty, batch, spec, assembler)
            _note_answers(context, batch, assembler, folder)
    failed = sum(manifest.counts.get(status, 0) for status in FAILED)
    done = failed + manifest.counts.get(RowStatus.SUCCESS, 0)
    shown = manifest.model_dump(mode="json")
    context.life.finish(duty, manifest.status, manifest=shown, rows_done=done, rows_failed=failed)
    log.info("%s %s: %d rows", manifest.status, duty.batch_id, manifest.rows)
    _tidy_index(context, batch["team"])


def may_stand(context: DutyContext, batch: Mapping[str, Any]) -> bool:
    """Whether a file that this batch has published as its single target stands, or may stand, without a manifest."""
    if not batch["target_hashes"]:
        return False
    places = context.places.of(batch["team"])
    try:
        target = target_of(DatasetSpec.model_validate(batch["dataset"]), places)
        return places.tree(target.uri).stat(target.uri) is not None
    except InvalidRequestError:
        return False
    except OSError:
        return True


def _has_published(context: DutyContext, batch: Mapping[str, Any]) -> bool:
    """Whether the file or the manifest that stands is this batch's: then it is to have both."""
    places = context.places.of(batch["team"])
    target = target_of(DatasetSpec.model_validate(batch["dataset"]), places)
    tree = places.tree(target.uri)
    manifest = read_manifest(tree, target.manifest_uri)
    if manifest is not None and manifest.batch_id == batch["id"]:
        return True
    standing = None if target.folder or not batch["target_hashes"] else tree.stat(target.uri)
    return standing is not None and sha256_at(tree, standing) in batch["target_hashes"]


def _finish_dry_run(context: DutyContext, duty: Duty, batch: Mapping[str, Any], spec: DatasetSpec) -> None:
    """Ends a dry run with its estimate, or without one if it ended before its sample was tokenized."""
    with context.storage.open(f"{batch['plan_key']}/{ESTIMATE_FILE}") as stream:
        counted = msgspec.json.decode(stream.read(), type=Counted)
    lines = [line for part in stored_results(context.storage, batch["plan_key"], context.parts(batch)) for line in part]
    found = estimate(
        counted,
        lines,
        answers=context.pace.answer_tokens(batch["team"], batch["model"], partial(same_question, other=spec)),
        pace=_pace(context, batch),
        price=context.settings.gpu_hour_price,
    )
    status = ends_as(batch)
    context.life.finish(duty, status, estimate=found.model_dump() if status == BatchStatus.COMPLETED else None)


def _pace(context: DutyContext, batch: Mapping[str, Any]) -> Pace | None:
    tokens, seconds = context.pace.of_model(batch["model"], batch["endpoint"])
    return Pace(tokens, seconds) if tokens and seconds else None


def _tidy_index(context: DutyContext, team: str) -> None:
    """Keeps the index small. The batch has ended: whatever goes wrong here is tried again after the next one."""
    try:
        context.index(team).tidy()
    except Exception:
        log.exception("could not tidy the index of team %s", team)


def _keys(context: DutyContext, batch: Mapping[str, Any], spec: DatasetSpec, identity: str | None) -> RowKeys | None:
    """How equal rows are known: only where they must get equal answers, and the caller lets them."""
    parameters = request_parameters(spec, batch["endpoint"])
    if batch["reuse"] == "never" or identity is None or not determined(batch["endpoint"], parameters):
        return None
    decides = [identity, batch["endpoint"], parameters, spec.choices, spec.output_schema]
    return RowKeys(context.team_secrets.get(batch["team"]), json.dumps(decides, sort_keys=True).encode())


def _written(
    context: DutyContext, duty: Duty, batch: Mapping[str, Any], spec: DatasetSpec, assembler: Assembler
) -> Manifest:
    """The target, its files published before its manifest."""
    places = context.places.of(batch["team"])
    target = target_of(spec, places)
    quarantine = quarantine_of(spec, target, places)
    owner = _owner(context, batch)
    publisher = Publisher(
        places.tree(target.uri),
        places,
        target,
        batch["id"],
        duty.attempt,
        spec.overwrite,
        owner,
        check=partial(context.life.check_target, duty, batch),
        note=partial(context.target_notes.note, duty),
        replaced=partial(
            context.target_notes.replaced,
            batch["id"],
            team=batch["team"],
            names=owner.names,
            overwrite=spec.overwrite,
        ),
        quarantine=quarantine,
    )
    with ExitStack() as stack:
        if quarantine is not None:
            path = stack.enter_context(publisher.file(quarantine.uri))
            failing = FailingRows(path, quarantine.format, assembler.output.schema, assembler.kept)
            assembler.failing = stack.enter_context(closing(failing))
        files = _published(publisher, batch, target, assembler)
        beside = _published_quarantine(publisher, quarantine, assembler)
    manifest = _manifest(context, batch, spec, target, files, beside, assembler)
    publisher.publish_manifest(manifest)
    return manifest


def _published(
    publisher: Publisher, batch: Mapping[str, Any], target: Target, assembler: Assembler
) -> list[TargetFile]:
    """The files of the target, each published as soon as it is written."""
    staged = assembler.files
    if not target.folder:
        with publisher.file(target.uri) as path:
            rows = assembler.assemble(range(len(staged)), path, target.format)
            assembler.check_all_written()
            return [publisher.publish(path, target.uri, rows)]
    files: list[TargetFile] = []
    for number, file in enumerate(staged):
        uri = target.file_uri(file.relative, number, batch["id"])
        with publisher.file(uri) as path:
            rows = assembler.assemble([number], path, target.format)
            files.append(publisher.publish(path, uri, rows))
    assembler.check_all_written()
    return files


def _published_quarantine(publisher: Publisher, quarantine: Target | None, assembler: Assembler) -> TargetFile | None:
    """The rows that failed, which were written beside the target; None for a batch without a quarantine."""
    failing = assembler.failing
    if quarantine is None or failing is None:
        return None
    failing.close()
    return publisher.publish_quarantine(failing.path, quarantine.uri, failing.rows)


def _note_answers(context: DutyContext, batch: Mapping[str, Any], assembler: Assembler, folder: Path) -> None:
    """Lets later batches find the answers, if all workers had the engine that the rows' keys were made for."""
    if batch["engine_identity"] is None or context.chunks.identities(batch["id"]) != {batch["engine_identity"]}:
        return
    path = folder / "index.parquet"
    rows = assembler.write_index(path, batch["id"], clock.now().timestamp())
    if rows:
        seconds = batch["output_seconds"] or context.settings.reuse_seconds
        context.index(batch["team"]).add(batch["id"], path, rows=rows, seconds=seconds)


def _check_unchanged(
    spec: DatasetSpec, dataset: CheckedDataset, context: DutyContext, batch: Mapping[str, Any]
) -> None:
    """What was read must be what was submitted: a source that changed meanwhile is a plan of nobody's table."""
    files = context.finder(batch["team"]).find(spec.source)
    found = content_sha256(spec, batch["model"], batch["endpoint"], files, dry_run=batch["dry_run"])
    if found != batch["content_sha256"]:
        raise InvalidRequestError(
            f"Source {dataset.shown_source} has changed since the batch was submitted. Nothing was run. "
            "Submit it again.",
            code="source_changed",
            param="dataset.source",
        )


def _manifest(
    context: DutyContext,
    batch: Mapping[str, Any],
    spec: DatasetSpec,
    target: Target,
    files: list[TargetFile],
    quarantine: TargetFile | None,
    assembler: Assembler,
) -> Manifest:
    return Manifest(
        batch_id=batch["id"],
        team=batch["team"],
        key=batch["key"],
        series=batch["series"],
        generation=batch["generation"],
        status=ends_as(batch),
        model=batch["model"],
        engine_identity=context.workers.identity_of(batch["team"], batch["model"]),
        source=spec.source,
        format=target.format.kind,
        folder=target.uri if target.folder else None,
        files=files,
        quarantine=quarantine,
        rows=assembler.rows,
        counts={status: assembler.counts[status] for status in RowStatus if assembler.counts[status]},
        failures=dict(assembler.failures.most_common()),
        rows_duplicate=batch["rows_duplicate"],
        rows_reused=batch["rows_reused"],
        prompt_tokens=batch["prompt_tokens"],
        completion_tokens=batch["completion_tokens"],
        gpu_seconds=round(batch["gpu_seconds"], 3),
        created_at=int(batch["created_at"]),
        finished_at=int(clock.now().timestamp()),
    )


def _owner(context: DutyContext, batch: Mapping[str, Any]) -> Owner:
    return Owner.of(batch["team"], batch["key"], batch["series"], context.target_notes)
