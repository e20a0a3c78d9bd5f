"""Files, as the unmodified client of OpenAI and plain HTTP see them."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from openai import AsyncOpenAI, OpenAI
from pool import free_port
from sqlalchemy import update

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.service.app import create_app
from airflow_batch_llm.service.byte_range import UnsatisfiableRangeError, byte_range
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.service.uploads import FORM_BYTES, receive
from airflow_batch_llm.settings import TOKEN_VARIABLE, Limits, ServiceSettings
from airflow_batch_llm.storage.local import LocalStorage
from airflow_batch_llm.store.tables import batches
from tests.conftest import RunningService, eventually
from tests.postgres import BOTH_STORES_IF_WHOLE

pytestmark = BOTH_STORES_IF_WHOLE

MIB = 1 << 20
DAY = 86_400
CONTENT = b'{"custom_id": "1"}\r\n{"custom_id": "\xc3\xa9"}\n--not-a-boundary\r\n\r\n'
PURPOSE = ("purpose", (None, b"batch"))
FILE = ("file", ("requests.jsonl", CONTENT))


@pytest.fixture
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=service.token, max_retries=0) as made:
        yield made


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.token}"}) as made:
        yield made


@pytest.fixture(scope="module")
def limited_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that takes files of 1,000 bytes at most."""
    folder = tmp_path_factory.mktemp("limited")
    settings = ServiceSettings(home=folder, data_roots=(folder,), port=free_port(), limits=Limits(file_bytes=1_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        state = ServiceState.open(settings)
    server = uvicorn.Server(uvicorn.Config(create_app(state), host="127.0.0.1", port=settings.port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, what="the service listens")
    token = settings.token_path.read_text().strip()
    with BatchClient(f"http://127.0.0.1:{settings.port}", token) as client:
        yield RunningService(settings, state, token, client)
    server.should_exit = True
    thread.join()


def upload(client: OpenAI, content: bytes = CONTENT, name: str = "requests.jsonl", **more: Any) -> str:
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch", **more).id


def files_below(folder: Path) -> list[Path]:
    """Everything there, half-written files too."""
    return [path for path in folder.rglob("*") if path.is_file()]


def in_storage(service: RunningService) -> list[Path]:
    return files_below(service.settings.storage_root)


def travel(service: RunningService, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Sets the store's clock forward."""
    monkeypatch.setattr(service.state.database, "_clock", lambda: time.time() + seconds)


def test_a_file_comes_back_as_it_was_sent(client: OpenAI) -> None:
    created = client.files.create(file=("requests.jsonl", CONTENT), purpose="batch")
    assert created.model_dump() == {
        "id": created.id,
        "object": "file",
        "bytes": len(CONTENT),
        "created_at": created.created_at,
        "filename": "requests.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
        "expires_at": created.created_at + 30 * DAY,
    }
    assert client.files.retrieve(created.id) == created
    assert client.files.content(created.id).read() == CONTENT
    assert client.files.wait_for_processing(created.id) == created


def test_a_download_can_be_streamed(client: OpenAI, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 * 3 + b"end"
    file_id = upload(client, content)
    with client.files.with_streaming_response.content(file_id) as response:
        assert response.headers["Content-Length"] == str(len(content))
        assert response.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert response.headers["Accept-Ranges"] == "bytes"
        response.stream_to_file(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


async def test_the_asynchronous_client_does_all_of_it_too(service: RunningService) -> None:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.token, max_retries=0) as client:
        expiry = {"anchor": "created_at", "seconds": 3600}
        made = [
            await client.files.create(file=(f"{number}.jsonl", CONTENT), purpose="batch", expires_after=expiry)
            for number in range(3)
        ]
        assert [file async for file in client.files.list(limit=2, order="asc")] == made
        async with client.files.with_streaming_response.content(made[0].id) as response:
            assert b"".join([block async for block in response.iter_bytes()]) == CONTENT
        assert (await client.files.delete(made[0].id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made[0].id)


@pytest.mark.parametrize("name", ["ask.jsonl", "Anfrage für 東京 🙂.jsonl", "a/b\\c;d=e.jsonl", "%41 100%", "x" * 512])
def test_a_file_keeps_its_name(client: OpenAI, http: httpx.Client, name: str) -> None:
    created = client.files.create(file=(name, CONTENT), purpose="batch")
    assert created.filename == name
    disposition = http.get(f"/v1/files/{created.id}/content").headers["Content-Disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''")
    assert httpx.URL(f"http://x/?{disposition.split(chr(39))[-1]}").params.keys() == {name.replace("+", " ")}


def test_a_file_without_a_name_is_called_by_its_id(http: httpx.Client) -> None:
    created = http.post("/v1/files", files=[("file", (None, CONTENT)), PURPOSE]).json()
    assert (created["filename"], created["bytes"]) == (created["id"], len(CONTENT))


@pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"\r\n--", b"\r" * 70_000, b"\n--boundary--\r\n" * 9_000])
def test_what_looks_like_the_form_around_it_is_content(http: httpx.Client, content: bytes) -> None:
    response = http.post(
        "/v1/files",
        content=b"".join(
            [
                b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
                content,
                b'\r\n--boundary\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--boundary--\r\n',
            ]
        ),
        headers={"Content-Type": "multipart/form-data; boundary=boundary"},
    )
    assert response.status_code == 200, response.text
    assert http.get(f"/v1/files/{response.json()['id']}/content").content == content


@pytest.mark.parametrize("order", [[FILE, PURPOSE], [PURPOSE, FILE]])
@pytest.mark.parametrize(
    "expiry",
    [
        [("expires_after[anchor]", (None, b"created_at")), ("expires_after[seconds]", (None, b"7200"))],
        [("expires_after", (None, b'{"anchor": "created_at", "seconds": 7200}'))],
    ],
)
def test_the_fields_come_in_any_order(http: httpx.Client, order: list[Any], expiry: list[Any]) -> None:
    for parts in (order + expiry, expiry + order):
        created = http.post("/v1/files", files=parts).json()
        assert created["expires_at"] == created["created_at"] + 7200


def _expiry(**fields: str) -> list[Any]:
    return [FILE, PURPOSE, *((f"expires_after[{name}]", (None, value.encode())) for name, value in fields.items())]


REFUSED = [
    ([FILE], "missing_required_parameter", "purpose", "Missing required parameter: 'purpose'."),
    ([PURPOSE], "missing_required_parameter", "file", "Missing required parameter: 'file'."),
    ([FILE, ("purpose", (None, b"fine-tune"))], "invalid_file_purpose", "purpose", "'fine-tune' is not supported"),
    ([("purpose", (None, b"")), FILE], "invalid_file_purpose", "purpose", "of purpose 'batch' (requests)"),
    ([FILE, PURPOSE, ("color", (None, b"red"))], "unknown_parameter", "color", "Unknown parameter: 'color'."),
    ([FILE, PURPOSE, FILE], "duplicate_parameter", "file", "'file' was given twice"),
    (
        [("file", ("x" * 513, CONTENT)), PURPOSE],
        "filename_too_long",
        "file",
        "name has 513 characters; it may have 512",
    ),
    ([FILE, ("purpose", (None, b"\xff"))], "invalid_value", "purpose", "`purpose` is not UTF-8"),
    (
        _expiry(anchor="created_at", seconds="3599"),
        "invalid_expires_after",
        "expires_after[seconds]",
        "is 3599; it must be a whole number from 3600 to 2592000",
    ),
    (
        _expiry(anchor="created_at", seconds="2592001"),
        "invalid_expires_after",
        "expires_after[seconds]",
        "is 2592001; it must",
    ),
    (_expiry(anchor="created_at", seconds="soon"), "invalid_expires_after", "expires_after[seconds]", "is soon"),
    (_expiry(anchor="now", seconds="7200"), "invalid_expires_after", "expires_after[anchor]", "is 'now'; it must"),
    (_expiry(seconds="7200"), "missing_required_parameter", "expires_after[anchor]", "'expires_after[anchor]'"),
    (_expiry(anchor="created_at"), "missing_required_parameter", "expires_after[seconds]", "'expires_after[seconds]'"),
    (
        [FILE, PURPOSE, ("expires_after", (None, b"[" * 5000))],
        "invalid_expires_after",
        "expires_after",
        "must be an object with `anchor` and `seconds`",
    ),
    (
        [
            *_expiry(anchor="created_at", seconds="7200"),
            ("expires_after", (None, b'{"anchor":"created_at","seconds":1}')),
        ],
        "invalid_expires_after",
        "expires_after[seconds]",
        "is 1; it must",
    ),
    (
        [FILE, ("purpose", (None, b"b" * 16 * FORM_BYTES))],
        "invalid_multipart",
        None,
        "more than 65,536 bytes beside its file",
    ),
]


@pytest.mark.parametrize(("parts", "code", "param", "says"), REFUSED)
def test_a_wrong_form_is_refused_and_nothing_is_stored(
    service: RunningService, http: httpx.Client, parts: list[Any], code: str, param: str | None, says: str
) -> None:
    response = http.post("/v1/files", files=parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert says in error["message"]
    assert error["message"].endswith("Nothing was stored.")
    assert in_storage(service) == []
    assert http.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("name", "says"), [(b"a\xff", "`filename` is not UTF-8"), (b"a\0b", "The file's name holds U+0000")]
)
def test_a_name_that_is_no_text_is_refused(service: RunningService, http: httpx.Client, name: bytes, says: str) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\nx\r\n--b--\r\n' % name
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = http.post("/v1/files", content=form, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")
    assert says in response.json()["error"]["message"]
    assert in_storage(service) == []


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        (None, b"", "its Content-Type is None"),
        ("application/json", b"{}", "its Content-Type is 'application/json'"),
        ("multipart/form-data", b"--b--\r\n", "names no boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, b"", "its boundary cannot be used"),
        ("multipart/form-data; boundary=b", b"", "it ends before its closing boundary"),
        ("multipart/form-data; boundary=b", b"nonsense", "it cannot be read as multipart/form-data"),
        ("multipart/form-data; boundary=b", b"--b\r\nA: b\r\n\r\nc\r\n--b--\r\n", "one of its parts has no name"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf of a li',
            "it ends before its closing boundary",
        ),
    ],
)
def test_a_body_that_is_not_a_whole_form_is_refused(
    service: RunningService, http: httpx.Client, kind: str | None, content: bytes, says: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    response = http.post("/v1/files", content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_multipart")
    assert says in error["message"]
    assert in_storage(service) == []


@pytest.mark.parametrize(
    ("bytes_", "chunked", "says"),
    [
        (1_001, False, "The file has 1,001 bytes or more, and this service takes files of at most 1,000."),
        (200_000, False, "The request has 200,"),
        (200_000, True, "bytes or more, and this service takes files of at most 1,000."),
    ],
)
def test_a_file_above_the_limit_is_refused_and_nothing_is_stored(
    limited_service: RunningService, bytes_: int, chunked: bool, says: str
) -> None:
    url, headers = f"{limited_service.url}/v1/files", {"Authorization": f"Bearer {limited_service.token}"}
    request = httpx.Request("POST", url, files=[("file", ("a", b"x" * bytes_)), PURPOSE], headers=headers)
    if chunked:
        content = request.read()
        kind = request.headers["Content-Type"]
        request = httpx.Request("POST", url, content=iter([content]), headers={**headers, "Content-Type": kind})
    with httpx.Client() as http:
        response = http.send(request)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (413, "file_too_large", "file")
        assert says in error["message"]
        assert "Nothing was stored." in error["message"]
        assert in_storage(limited_service) == []
        fits = http.post(url, files=[("file", ("a", b"x" * 1_000)), PURPOSE], headers=headers)
    assert fits.json()["bytes"] == 1_000
    limited_service.state.storage.delete_prefix("files")


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(service: RunningService) -> None:
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Length: {100 * MIB}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", service.settings.port)) as connection:
        connection.sendall(head.encode() + b"x" * 3 * MIB)
        eventually(lambda: sum(path.stat().st_size for path in in_storage(service)) >= 2 * MIB, what="it is written")
    eventually(lambda: not in_storage(service), what="it is gone")
    assert service.state.files.page("default", limit=10) == []


def test_bytes_that_get_no_record_do_not_stay(
    service: RunningService, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service.state.files, "add", full)
    response = http.post("/v1/files", files=[FILE, PURPOSE])
    assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")
    assert in_storage(service) == []


async def test_an_upload_of_any_size_needs_the_memory_of_a_block(tmp_path: Path) -> None:
    block = bytes(range(256)) * 256

    async def blocks() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(1_024):
            yield bytes(bytearray(block))  # as a server does it: memory of its own
        yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'

    tracemalloc.start()
    try:
        received = await receive(
            blocks(),
            content_type="multipart/form-data; boundary=b",
            content_length=None,
            storage=LocalStorage(tmp_path),
            key="files/a",
            most_bytes=None,
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received.bytes == 64 * MIB
    assert received.sha256 == hashlib.sha256(block * 1_024).hexdigest()
    assert (tmp_path / "files/a").stat().st_size == 64 * MIB
    assert peak < 4 * MIB


async def test_whatever_ends_an_upload_leaves_nothing(tmp_path: Path) -> None:
    class PulledPlug(BaseException):
        pass

    class Storage(LocalStorage):
        """Keeps what it made, so that it is not tidied up by being forgotten."""

        made: list[Any] = []  # noqa: RUF012

        def create(self, key: str) -> Any:
            self.made.append(super().create(key))
            return self.made[-1]

    async def blocks() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield b"x" * 2 * MIB
        raise PulledPlug

    with pytest.raises(PulledPlug):
        await receive(
            blocks(),
            content_type="multipart/form-data; boundary=b",
            content_length=None,
            storage=Storage(tmp_path),
            key="files/a",
            most_bytes=None,
        )
    assert files_below(tmp_path) == []


async def test_a_request_that_says_its_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        pytest.fail("It was read.")
        yield b""

    with pytest.raises(InvalidRequestError, match=r"The request has 5,000,000,000 bytes, and .* at most 200,000,000"):
        await receive(
            blocks(),
            content_type="multipart/form-data; boundary=b",
            content_length=5_000_000_000,
            storage=LocalStorage(tmp_path),
            key="files/a",
            most_bytes=200_000_000,
        )


def test_a_download_of_any_size_needs_the_memory_of_some_blocks(client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client, b"x" * 64 * MIB)
    tracemalloc.start()
    try:
        with http.stream("GET", f"/v1/files/{file_id}/content") as response:
            length = sum(len(block) for block in response.iter_raw())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == 64 * MIB
    assert peak < 12 * MIB  # service and client, both in this process


def test_files_are_listed_a_page_at_a_time(client: OpenAI) -> None:
    made = [upload(client) for _ in range(7)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == made
    page = client.files.list(limit=3, after=made[4])
    assert [file.id for file in page.data] == [made[3], made[2], made[1]]
    assert page.has_more
    last = client.files.list(limit=7)
    assert (len(last.data), last.has_more) == (7, False)
    assert [file.id for file in client.files.list(purpose="batch", limit=5)] == made[::-1]
    assert client.files.list(purpose="batch_output").data == []


def test_the_list_has_the_fields_of_openais_own(client: OpenAI, http: httpx.Client) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert http.get("/v1/files").json() == empty
    first, last = upload(client), upload(client)
    listed = http.get("/v1/files").json()
    assert (listed["first_id"], listed["last_id"], listed["data"][0]["id"]) == (last, first, last)


def test_whoever_deletes_what_a_page_shows_sees_every_file(client: OpenAI) -> None:
    made = {upload(client) for _ in range(5)}
    assert {client.files.delete(file.id).id for file in client.files.list(limit=2)} == made
    assert client.files.list().data == []


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 400, "invalid_request"),
        ("limit=10001", 400, "invalid_request"),
        ("order=up", 400, "invalid_request"),
        ("after=file-nope", 404, "file_not_found"),
    ],
)
def test_a_wrong_query_is_refused(http: httpx.Client, query: str, status: int, code: str) -> None:
    response = http.get(f"/v1/files?{query}")
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["param"] == query.split("=")[0]


def test_a_deleted_file_is_gone_everywhere(service: RunningService, client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client)
    assert client.files.delete(file_id).model_dump() == {"id": file_id, "object": "file", "deleted": True}
    _check_gone(http, file_id)
    assert in_storage(service) == []
    assert service.state.files.stored(file_id).bytes == len(CONTENT)


def _check_gone(http: httpx.Client, file_id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = http.request(method, f"/v1/files/{file_id}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")
    assert file_id not in [file["id"] for file in http.get("/v1/files").json()["data"]]
    create = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    response = http.post("/v1/batches", json=create)
    assert (response.status_code, response.json()["error"]["param"]) == (404, "input_file_id")


def test_an_expired_file_is_gone_everywhere(
    service: RunningService, client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    expiring = upload(client, expires_after={"anchor": "created_at", "seconds": 3600})
    staying = upload(client)
    travel(service, monkeypatch, 3500)
    assert client.files.retrieve(expiring).id == expiring
    travel(service, monkeypatch, 3601)
    _check_gone(http, expiring)
    assert [file.id for file in client.files.list()] == [staying]
    assert service.state.files.stored(expiring).id == expiring
    travel(service, monkeypatch, 31 * DAY)
    assert client.files.list().data == []


def test_another_teams_file_is_not_there(service: RunningService, client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client)
    token = secrets.token_urlsafe()
    service.state.tokens.add(token, name="second", team="others")
    http.headers["Authorization"] = f"Bearer {token}"
    _check_gone(http, file_id)
    assert http.get(f"/v1/files?after={file_id}").status_code == 404
    assert client.files.retrieve(file_id).id == file_id


def test_a_file_that_a_batch_is_still_to_read_stays(service: RunningService, client: OpenAI) -> None:
    file_id = upload(client)
    batch = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.ConflictError, match=f"still to be read by batch {batch.id}") as refused:
        client.files.delete(file_id)
    assert refused.value.code == "file_in_use"
    assert client.files.content(file_id).read() == CONTENT
    with service.state.database.writing() as connection:
        connection.execute(update(batches).where(batches.c.id == batch.id).values(status="in_progress"))
    assert client.files.delete(file_id).deleted


RANGES = [
    ("bytes=0-0", 206, "0-0"),
    ("bytes=2-5", 206, "2-5"),
    ("bytes=7-", 206, "7-9"),
    ("bytes=7-100", 206, "7-9"),
    ("bytes=-3", 206, "7-9"),
    ("bytes=-100", 206, "0-9"),
    ("Bytes=9-9", 206, "9-9"),
    ("bytes=10-", 416, "*"),
    ("bytes=10-20", 416, "*"),
    ("bytes=-0", 416, "*"),
    ("bytes=5-2", 200, None),
    ("bytes=0-1,3-4", 200, None),
    ("bytes=-", 200, None),
    ("bytes=a-b", 200, None),
    ("lines=0-1", 200, None),
    ("bytes=" + "9" * 10_000 + "-", 200, None),
]


@pytest.mark.parametrize(("header", "status", "sent"), RANGES)
def test_a_range_is_what_is_sent(
    client: OpenAI, http: httpx.Client, header: str, status: int, sent: str | None
) -> None:
    content = b"0123456789"
    file_id = upload(client, content)
    response = http.get(f"/v1/files/{file_id}/content", headers={"Range": header})
    assert response.status_code == status
    assert response.headers.get("Content-Range") == (f"bytes {sent}/10" if sent else None)
    assert response.headers["Content-Length"] == str(len(response.content))
    if status == 416:
        assert response.json()["error"]["code"] == "range_not_satisfiable"
        assert f"has 10 bytes, and `{header}` is behind them" in response.json()["error"]["message"]
    else:
        first, last = map(int, sent.split("-")) if sent else (0, 9)
        assert response.content == content[first : last + 1]


@pytest.mark.parametrize(
    ("header", "wanted"), [("bytes=-5", None), ("bytes=0-", "none"), ("bytes=-0", "none"), (None, None)]
)
def test_of_an_empty_file_there_is_no_range(header: str | None, wanted: str | None) -> None:
    if wanted is None:
        assert byte_range(header, 0) is None
    else:
        with pytest.raises(UnsatisfiableRangeError):
            byte_range(header, 0)


def test_a_range_of_another_content_is_not_sent(client: OpenAI, http: httpx.Client) -> None:
    url = f"/v1/files/{upload(client)}/content"
    etag = http.get(url).headers["ETag"]
    same = http.get(url, headers={"Range": "bytes=1-2", "If-Range": etag})
    other = http.get(url, headers={"Range": "bytes=1-2", "If-Range": '"another"'})
    assert (same.status_code, same.content) == (206, CONTENT[1:3])
    assert (other.status_code, other.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("left", "says"), [(None, "are missing, though its record stands"), (b"{", "has 1 bytes there")]
)
def test_bytes_that_storage_has_lost_are_the_services_trouble(
    service: RunningService, client: OpenAI, http: httpx.Client, left: bytes | None, says: str
) -> None:
    file_id = upload(client)
    (path,) = in_storage(service)
    path.unlink() if left is None else path.write_bytes(left)
    response = http.get(f"/v1/files/{file_id}/content")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (503, "server_error", "storage_trouble")
    assert says in error["message"]
    assert json.dumps(file_id)[1:-1] in error["message"]
