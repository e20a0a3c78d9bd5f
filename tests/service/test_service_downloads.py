"""Downloads of what a batch left: the bytes of its files, in pieces, from where its team may read them."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
import pytest
from fastapi.responses import StreamingResponse
from pool import free_port

from airflow_batch_llm.service import downloads
from airflow_batch_llm.service.state import ServiceState
from tests.conftest import RunningService, running_service
from tests.s3_server import Bucket
from tests.service.looking import call, end, submit, table
from tests.service.requests import create, file_of, finish, line, openai_client


def test_a_file_of_the_target_is_sent_as_it_stands(service: RunningService) -> None:
    table(service)
    batch = end(service, submit(service, target="täble.csv"))
    answer = call(service, batch.id, "download")
    assert answer.content == (service.data_root / "täble.csv").read_bytes()
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''t%C3%A4ble.csv"
    assert batch.manifest is not None
    assert answer.headers["etag"] == f'"{batch.manifest.files[0].sha256}"'


def test_the_files_of_a_folder_are_numbered_as_in_the_manifest(service: RunningService) -> None:
    (service.data_root / "in").mkdir()
    for number in range(3):
        table(service, number + 1, name=f"in/{number}.parquet")
    batch = end(service, submit(service, source="in/", target="out/", format="jsonl"))
    assert batch.manifest is not None
    for number, file in enumerate(batch.manifest.files):
        assert call(service, batch.id, "download", file=number).content == Path(file.uri).read_bytes()
    answer = call(service, batch.id, "download", file=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


def test_while_a_batch_has_no_file_it_says_so(service: RunningService) -> None:
    table(service)
    batch = submit(service)
    answer = call(service, batch.id, "download")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_results_yet")
    assert f"{batch.id} is in_progress and has no file yet" in answer.json()["error"]["message"]


@pytest.mark.parametrize("how", ["removed", "edited", "replaced"])
def test_a_target_that_is_not_the_batchs_any_more_is_not_sent(service: RunningService, how: str) -> None:
    table(service)
    batch = end(service, submit(service))
    if how == "removed":
        (service.data_root / "t.parquet").unlink()
    elif how == "edited":
        (service.data_root / "t.parquet").write_bytes(b"SECRET")
    else:
        end(service, submit(service, overwrite=True, choices=["a", "b"]), name="second")
    answer = call(service, batch.id, "download")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "target_gone")


def test_a_request_file_has_its_output_and_its_errors(service: RunningService) -> None:
    batch = create(openai_client(service), file_of([line(number) for number in range(3)]))
    assert call(service, batch.id, "download").status_code == 409
    finish(service, failing=[1])
    output, errors = (call(service, batch.id, "download", file=number).text.splitlines() for number in (0, 1))
    assert (len(output), len(errors)) == (2, 1)
    assert call(service, batch.id, "download", file=2).json()["error"]["code"] == "file_not_found"
    whole = create(openai_client(service), file_of([line(0)]))
    finish(service)
    assert call(service, whole.id, "download", file=1).json()["error"]["code"] == "file_not_found"


def test_a_file_is_sent_in_pieces(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    table(service, 500)
    batch = end(service, submit(service, target="t.jsonl"))
    monkeypatch.setattr(downloads, "BLOCK_BYTES", 1_000)
    state = service.state
    answer = downloads.download(state, state.batches.get("default", batch.id), 0)
    assert isinstance(answer, StreamingResponse)

    async def pieces() -> list[bytes]:
        return [piece async for piece in answer.body_iterator]  # type: ignore[misc]

    sent = anyio.run(pieces)
    assert max(map(len, sent)) == 1_000
    assert b"".join(sent) == (service.data_root / "t.jsonl").read_bytes()


def test_a_target_on_s3_is_sent_while_its_team_may_read_there(service: RunningService, s3: Bucket) -> None:
    with _with_prefix(service, s3.uri("lake")) as allowed:
        table(allowed)
        batch = end(allowed, submit(allowed, target=s3.uri("lake/t.jsonl")))
        answer = call(allowed, batch.id, "download")
    assert answer.content.count(b"\n") == 6
    assert answer.headers["content-disposition"].endswith("''t.jsonl")
    with _with_prefix(service, s3.uri("other")) as elsewhere:
        for what in ("download", "results"):
            assert call(elsewhere, batch.id, what).json()["error"]["code"] == "target_gone"
        assert call(elsewhere, batch.id, "rows").json()["order"] == "committed"


def _with_prefix(service: RunningService, prefix: str) -> AbstractContextManager[RunningService]:
    """The same service, started with another place for its tables."""
    settings = dataclasses.replace(service.settings, data_prefixes=(prefix,), port=free_port())
    return running_service(ServiceState.open(settings), service.token)
