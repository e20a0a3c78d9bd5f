"""Tables that are broken in some way, and what a user is told of each.

    python -m tests.service.broken_inputs

prints every message, to be read.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pool import free_port

from airflow_batch_llm.errors import RefusedError
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService, running_service
from tests.service.answering import answer_all

ENDINGS = ("parquet", "jsonl", "csv", "jsonl.gz", "jsonl.zst", "csv.gz", "csv.zst")
ROWS = 3_000
NOISE = bytes(range(128, 256)) * 20


@dataclass(frozen=True)
class Told:
    """What a user is told: at the submit, of the batch when it was planned, or of a row."""

    where: str
    code: str
    message: str


@dataclass(frozen=True)
class Fault:
    """``spoil`` makes the source at a path (which ends in ``ending``); ``spec`` is what is asked of it."""

    spoil: Callable[[Path, str], None]
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    later: Callable[[Path, str], None] | None = None
    """What happens to the source between the submit and the plan."""
    endings: tuple[str, ...] = ENDINGS


def good(ending: str, rows: int = ROWS, name: str = "text") -> bytes:
    """A table of that ending with one column of texts."""
    texts = [f"text {i * 7919 % rows} {i}" for i in range(rows)]
    kind, _, outer = ending.partition(".")
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({name: pa.array(texts, pa.string())}), buffer, row_group_size=1_000)
        return buffer.getvalue()
    lines = [name, *texts] if kind == "csv" else [f'{{"{name}": "{text}"}}' for text in texts]
    return packed("".join(f"{line}\n" for line in lines).encode(), outer)


def packed(content: bytes, outer: str) -> bytes:
    return {"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[outer](content)


def lines(ending: str, csv: bytes, jsonl: bytes) -> bytes:
    kind, _, outer = ending.partition(".")
    return packed(csv if kind == "csv" else jsonl, outer)


def table(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def _twice(path: Path, ending: str) -> None:
    if ending == "parquet":
        pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    else:
        path.write_bytes(lines(ending, b"text,text\na,b\n", b""))


def _clash(path: Path, ending: str) -> None:
    path.write_bytes(good(ending, 3, "llm_output"))


def _not_utf8(path: Path, ending: str) -> None:
    if ending == "parquet":
        texts = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string())
        table(path, text=texts)
    else:
        path.write_bytes(lines(ending, b"text\na\n\xff\xfe\nc\n", b'{"text":"a"}\n{"text":"\xff\xfe"}\n{"text":"c"}\n'))


def _one_bad_row(path: Path, ending: str) -> None:
    if ending == "parquet":
        table(path, text=[b"a", b"b"])
    else:
        path.write_bytes(lines(ending, b"text,b\na,1\nb\nc,3\n", b'{"text":"a"}\n{"text":\n{"text":"c"}\n'))


def _wrong_content(path: Path, ending: str) -> None:
    path.write_bytes({"parquet": good("csv"), "csv": good("parquet"), "jsonl": good("csv")}.get(ending, good("jsonl")))


def _cut(path: Path, ending: str) -> None:
    whole = good(ending)
    path.write_bytes(whole[: len(whole) // 2])


def _good(path: Path, ending: str) -> None:
    path.write_bytes(good(ending))


def _outside(path: Path, ending: str) -> None:
    path.symlink_to("/etc/passwd")


COMPRESSED = ENDINGS[3:]
FAULTS: dict[str, Fault] = {
    "missing": Fault(lambda path, ending: None),
    "no bytes": Fault(lambda path, ending: path.touch()),
    "noise": Fault(lambda path, ending: path.write_bytes(NOISE) and None),
    "cut in half": Fault(_cut, endings=("parquet", *COMPRESSED)),
    "no rows": Fault(lambda path, ending: path.write_bytes(good(ending, 0)) and None),
    "a column twice": Fault(_twice, endings=("parquet", "csv", "csv.gz", "csv.zst")),
    "an output's name": Fault(_clash, {"prompt": "x"}),
    "no such column": Fault(_good, {"prompt": "{txet}"}),
    "one row is not UTF-8": Fault(_not_utf8),
    "one row is malformed": Fault(_one_bad_row),
    "another format": Fault(_wrong_content),
    "an empty folder": Fault(lambda path, ending: path.mkdir()),
    "a link that leads out": Fault(_outside),
    "the target itself": Fault(_good, {"target": "{source}"}),
    "changed since": Fault(_good, later=lambda path, ending: path.write_bytes(good(ending, ROWS - 1)) and None),
    "gone since": Fault(_good, later=lambda path, ending: path.unlink()),
}


def cases() -> Iterator[tuple[str, str]]:
    """Every fault with every ending that can have it."""
    return ((name, ending) for name, fault in FAULTS.items() for ending in fault.endings)


def told(service: RunningService, name: str, ending: str, folder: str = ".") -> Told:
    """What a user is told of a fault in a table below ``folder`` of the data root."""
    fault = FAULTS[name]
    path = service.data_root / folder / f"source.{ending}"
    fault.spoil(path, ending)
    spec = dict(fault.spec)
    dataset = DatasetSpec(
        source=f"{folder}/{path.name}",
        target=spec.pop("target", "{folder}/target.jsonl").format(folder=folder, source=f"{folder}/{path.name}"),
        messages=[Message(role="user", content=spec.pop("prompt", "{text}"))],
    )
    try:
        batch = service.client.submit(BatchCreate(dataset=dataset, model="m"))
    except RefusedError as error:
        return Told("submit", str(error.code), error.message)
    if fault.later:
        fault.later(path, ending)
    service.plan()
    errors = service.client.get(batch.id).errors
    if errors is not None:
        return Told("plan", errors.data[0].code, errors.data[0].message)
    for row in answer_all(service, batch):
        if row["llm_error"]:
            code, _, message = row["llm_error"].partition(": ")
            return Told("row", code, message)
    return Told("nowhere", "", "")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        settings = ServiceSettings(home=Path(folder) / "home", data_roots=(data,), port=free_port())
        data.mkdir()
        state = ServiceState.open(settings)
        with running_service(state, settings.token_path.read_text().strip()) as service:
            print("| fault | file | where | code | what the user is told |\n|---|---|---|---|---|")
            for number, (name, ending) in enumerate(cases()):
                (data / str(number)).mkdir()
                found = told(service, name, ending, str(number))
                message = found.message.replace(f"{data / str(number)}/", "").replace("|", "\\|")
                print(f"| {name} | .{ending} | {found.where} | `{found.code}` | {message} |")


if __name__ == "__main__":
    main()
