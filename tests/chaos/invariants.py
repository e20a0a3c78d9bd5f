"""What must be true of every schedule once all has come to rest. Each broken promise is a sentence."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from airflow_batch_llm.service.duties import MOST_LOSSES
from airflow_batch_llm.service.formats import FileFormat, decompressed
from airflow_batch_llm.wire import Batch, Manifest
from tests.chaos.answers import REFUSED, answer_to, end_of, tokens_of
from tests.chaos.watch import ENDED, SeenBatch
from tests.chaos.world import World

UNDONE = ("cancelled", "expired")


def broken(world: World) -> list[str]:
    """The promises that a schedule broke."""
    found = [*world.watch.wrong, *world.stumbles]
    found += _left_undone(world)
    client = world.client
    for seen in world.watch.batches.values():
        if seen.deleted or seen.statuses[-1] not in ENDED:
            continue
        batch = client.get(seen.id)
        found += [f"{seen.id} ({batch.status}): {what}" for what in _of_batch(world, seen, batch)]
    found += _of_targets(world)
    return found


def _left_undone(world: World) -> Iterator[str]:
    """Nothing is left to be done, and nobody holds anything."""
    for row in world.watch.rows("SELECT id, status, trouble FROM batches"):
        if row.status not in ENDED:
            yield f"batch {row.id} never ended: it is {row.status} (trouble: {row.trouble})"
    for row in world.watch.rows("SELECT batch_id, kind, attempt FROM duties WHERE NOT done"):
        yield f"duty {row.kind} of {row.batch_id} was never done, in {row.attempt} attempts"
    undone = "SELECT id, batch_id, attempt FROM chunks WHERE state IN ('leased', 'pending', 'held')"
    for row in world.watch.rows(undone):
        yield f"chunk {row.id} of {row.batch_id} is left with attempt {row.attempt}"


def _of_batch(world: World, seen: SeenBatch, batch: Batch) -> Iterator[str]:
    if batch.status == "failed":
        assert batch.errors is not None
        may = {"source_changed", "file_not_found"}
        if world.watch.lost_planners[batch.id] >= MOST_LOSSES:
            may.add("planner_lost")
        if any(error.code not in may for error in batch.errors.data):
            yield f"failed for {batch.errors.data}"
        return
    yield from _tokens(seen, batch)
    counts = batch.request_counts
    if min(counts.total, counts.completed, counts.failed) < 0 or counts.completed + counts.failed > counts.total:
        yield f"its counts cannot be: {counts}"
    if batch.dataset is not None:
        if batch.manifest is not None:
            yield from _table_counts(batch, batch.manifest)
        elif batch.status != "cancelled":
            yield "it has no manifest"
        elif batch.progress.waiting_for and not batch.progress.waiting_for.startswith("No target was written: "):
            yield f"it waits for something: {batch.progress.waiting_for}"
    elif batch.in_progress_at is not None:
        yield from _files(world, batch)


def _tokens(seen: SeenBatch, batch: Batch) -> Iterator[str]:
    """What the usage says is what the committed parts say, and they what their rows took."""
    prompt = sum(line.prompt_tokens or 0 for line in seen.lines)
    answer = sum(line.completion_tokens or 0 for line in seen.lines)
    assert batch.usage is not None
    if (batch.usage.input_tokens, batch.usage.output_tokens) != (prompt, answer):
        yield f"its usage is {batch.usage}, but its parts have {prompt} and {answer} tokens"


def _table_counts(batch: Batch, manifest: Manifest) -> Iterator[str]:
    progress, counts = batch.progress, batch.request_counts
    answered = sum(count for status, count in manifest.counts.items() if status not in UNDONE)
    failed = sum(count for status, count in manifest.counts.items() if status in ("error", "invalid_output"))
    if (progress.rows_total, progress.rows_done, progress.rows_failed) != (manifest.rows, answered, failed):
        yield f"its progress is {progress}, but its target has {manifest.counts}"
    if (counts.total, counts.completed, counts.failed) != (manifest.rows, answered - failed, failed):
        yield f"its request_counts are {counts}, but its target has {manifest.counts}"
    if manifest.status != batch.status:
        yield f"its manifest says {manifest.status}"


def _of_targets(world: World) -> Iterator[str]:
    """Each target is that of the newest batch that left one."""
    newest: dict[str, Batch] = {}
    unknown: set[str] = set()
    for seen in world.watch.batches.values():  # in the order in which they were submitted
        if seen.target is None:
            continue
        if seen.deleted:
            unknown.add(seen.target)
        elif seen.statuses[-1] in ENDED and (batch := world.client.get(seen.id)).manifest is not None:
            newest[seen.target] = batch
            unknown.discard(seen.target)
    for target, batch in newest.items():
        if target not in unknown:
            source = world.watch.batches[batch.id].source
            yield from (f"target {target} of {batch.id}: {what}" for what in _target(world, batch, source))


def _target(world: World, batch: Batch, source: list[dict[str, Any]]) -> Iterator[str]:
    path = world.data / str(batch.dataset.target if batch.dataset else "")
    noted = path / "_manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")
    if not noted.exists():
        yield "no manifest stands beside it"
        return
    manifest = Manifest.model_validate_json(noted.read_bytes())
    if not _same(manifest, batch.manifest):
        yield f"the manifest that stands there is another one: {manifest}, and not {batch.manifest}"
        return
    rows: list[dict[str, Any]] = []
    for file in manifest.files:
        content = Path(file.uri).read_bytes() if Path(file.uri).exists() else b""
        if (len(content), hashlib.sha256(content).hexdigest()) != (file.bytes, file.sha256):
            yield f"{file.uri} is not what the manifest says"
            return
        rows += table_rows(Path(file.uri))
    yield from row_faults(rows, source, batch)
    stray = {str(p) for p in path.rglob("*") if p.is_file()} - {f.uri for f in manifest.files} - {str(noted)}
    if path.is_dir() and stray:
        yield f"files that no manifest names lie in it: {sorted(stray)}"


def _same(standing: Manifest, noted: Manifest | None) -> bool:
    """But for its time: an assembler that wakes up late may write once more what another one has written."""
    return noted is not None and standing.model_copy(update={"finished_at": noted.finished_at}) == noted


def row_faults(rows: list[dict[str, Any]], source: list[dict[str, Any]], batch: Batch) -> Iterator[str]:
    """Target rows = source rows, in order, each with its own answer."""
    kept = [{name: row[name] for name in ("number", "text", "extra")} for row in rows]
    if kept != source:
        yield f"it has {len(rows)} rows and not the {len(source)} of the source in their order"
        return
    for row in rows:
        if row["llm_status"] in UNDONE:
            if batch.status == "completed":
                yield f"row {row['number']} is {row['llm_status']} in a completed batch"
        elif what := _answer_fault(row):
            yield f"row {row['number']} {what}"


def _answer_fault(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the answer of a row that was done. Only a deadly row is given up, and as what it is."""
    text, status = row["text"], row["llm_status"]
    if REFUSED in text:
        return None if status == "error" else f"was refused and is {status}"
    if code := end_of(text):
        ended = status == "error" and row["llm_error"].startswith(f"{code}: ")
        return None if ended else f"is deadly and is {status} ({row['llm_error']})"
    if (status, row["llm_output"]) != ("success", answer_to(text)):
        return f"has the answer {row['llm_output']!r} ({status}, {row['llm_error']})"
    if (int(row["llm_prompt_tokens"]), int(row["llm_completion_tokens"])) != tokens_of(text):
        return "has the tokens of another"
    return None


def table_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a target file."""
    form = FileFormat.of_name(path.name)
    assert form is not None
    if form.kind == "parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open("rb") as stream, decompressed(stream, form.compression) as inner:
        content = inner.read()
    if form.kind == "jsonl":
        return [orjson.loads(line) for line in content.splitlines()]
    return list(pa_csv.read_csv(io.BytesIO(content)).to_pylist())


def _files(world: World, batch: Batch) -> Iterator[str]:
    """Each custom_id exactly once in output or error file, with its own answer; counts as the files have them."""
    source = world.requests[world.uploaded_sha256(str(batch.input_file_id))]
    output = _lines(world, batch.output_file_id)
    errors = _lines(world, batch.error_file_id)
    times = Counter(line["custom_id"] for line in [*output, *errors])
    if times != Counter(source.keys()):
        yield f"its files have {sum(times.values())} lines for {len(source)} requests: {times - Counter(source.keys())}"
        return
    for file in (output, errors):
        order = [line["custom_id"] for line in file]
        if order != [name for name in source if name in set(order)]:
            yield "the lines of a file are not in the order of the requests"
    for line in output:
        if line["response"]["body"]["choices"][0]["message"]["content"] != answer_to(source[line["custom_id"]]):
            yield f"{line['custom_id']} has another request's answer"
    undone = [
        line for line in errors if line["error"] and line["error"]["code"] in ("batch_cancelled", "batch_expired")
    ]
    refused = len(errors) - len(undone)
    for line in errors:
        code = ((line["response"] or {}).get("body") or {}).get("error", {}).get("code")
        text = source[line["custom_id"]]
        if line not in undone and REFUSED not in text and (code is None or code != end_of(text)):
            yield f"{line['custom_id']} is an error: {line}"
    if undone and batch.status == "completed":
        yield f"{len(undone)} requests were not done"
    counts = batch.request_counts
    if (counts.total, counts.completed, counts.failed) != (len(source), len(output), refused):
        yield f"its request_counts are {counts}, but its files have {len(output)} answers and {refused} errors"


def _lines(world: World, file_id: str | None) -> list[Mapping[str, Any]]:
    return [msgspec.json.decode(line) for line in world.client.file_lines(file_id)] if file_id else []
