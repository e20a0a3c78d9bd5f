"""A real S3 protocol server in this process: moto over HTTP, with what a test must be able to see and to spoil.

A conftest takes the fixtures by ``from tests.s3_server import s3, s3_server``.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

from airflow_batch_llm.storage.s3_client import client, forget_client

ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Request:
    """What reached the server. ``path`` is ``/bucket/key``, decoded; ``sent`` counts the answer's bytes."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    sent: int


@dataclass
class Fault:
    """An answer in place of the real one, to at most ``times`` requests that ``matches`` by method and target."""

    matches: Callable[[str, str], bool]
    times: int
    status: str
    body: bytes
    after: bool = False
    cut: bool = False
    seen: int = 0


@dataclass
class S3Server:
    """Records every request. What writes is done one after the other, which S3 promises for a key and moto does not."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _app: Any = None
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = (
            environ["REQUEST_METHOD"],
            unquote(environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0]),
        )
        fault = self._fault(method, f"{path}?{environ['QUERY_STRING']}")
        if fault is None or fault.after or fault.cut:
            status, headers, body = self._answer(environ, writes=method not in ("GET", "HEAD"))
        if fault is not None and fault.cut:
            body = body[: len(body) // 2]
        elif fault is not None:
            status, headers, body = fault.status, [("Content-Type", "application/xml")], fault.body
        given = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if "HTTP_" in name}
        sent = 0 if method == "HEAD" else len(body)
        self.requests.append(Request(method, path, environ.get("QUERY_STRING", ""), given, sent))
        start_response(status, headers)
        return [] if method == "HEAD" else [body]

    def failing(
        self,
        status: str,
        code: str,
        *,
        when: Callable[[str, str], bool] = lambda method, target: True,
        times: int = 1_000,
        after: bool = False,
    ) -> contextlib.AbstractContextManager[Fault]:
        """Has requests answered with an error; ``after`` they were done, as if the true answer had got lost."""
        body = f"<Error><Code>{code}</Code><Message>The test wants it so.</Message></Error>".encode()
        return self.answering(Fault(when, times, status, body, after=after))

    @contextlib.contextmanager
    def answering(self, fault: Fault) -> Iterator[Fault]:
        """Has ``fault`` in force for a while."""
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def _fault(self, method: str, target: str) -> Fault | None:
        for fault in self.faults:
            if fault.seen < fault.times and fault.matches(method, target):
                fault.seen += 1
                return fault
        return None

    def _answer(self, environ: dict[str, Any], *, writes: bool) -> tuple[str, Any, bytes]:
        answered: list[Any] = []

        def start(status: str, headers: Any, _: Any = None) -> None:
            answered[:] = [status, headers]

        with self._writing if writes else contextlib.nullcontext():
            if (refused := _refused_parts(environ)) is not None:
                return refused
            body = b"".join(self._app(environ, start))
        return answered[0], answered[1], body


def _refused_parts(environ: dict[str, Any]) -> tuple[str, Any, bytes] | None:
    """What S3 answers to parts whose If-Match does not hold when they are put together; moto does not look at it there.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
    """
    etag = environ.get("HTTP_IF_MATCH")
    if etag is None or environ["REQUEST_METHOD"] != "POST" or "uploadId" not in environ["QUERY_STRING"]:
        return None
    bucket, _, name = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    found = s3_backends[ACCOUNT]["aws"].get_object(bucket, name)
    if found is not None and found.etag.strip('"') == etag.strip('"'):
        return None
    status, code = (
        ("404 Not Found", "NoSuchKey") if found is None else ("412 Precondition Failed", "PreconditionFailed")
    )
    return status, [("Content-Type", "application/xml")], f"<Error><Code>{code}</Code></Error>".encode()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket on a server that the environment points to."""

    name: str
    server: S3Server

    def uri(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def put_many(self, keys: Iterable[str]) -> None:
        """Puts empty objects without a request for each."""
        backend = s3_backends[ACCOUNT]["aws"]
        for key in keys:
            backend.put_object(self.name, key, b"")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server(_app=DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, server, threaded=True, request_handler=_QuietHandler)
    server.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield server
    listening.shutdown()
    thread.join()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket; boto3 in this process and in its children finds the server by the environment."""
    point_at(s3_server.url, monkeypatch)
    bucket = Bucket(f"bucket-{uuid.uuid4().hex}", s3_server)
    client().create_bucket(Bucket=bucket.name)
    s3_server.requests.clear()
    yield bucket
    s3_backends[ACCOUNT]["aws"].reset()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets AWS's own variables, and takes away those of whoever runs the tests."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if client().meta.endpoint_url != url:  # to make one takes longer than most tests
        forget_client()


class _QuietHandler(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """Says nothing."""
