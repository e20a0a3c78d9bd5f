"""The HTTP API of a batch service as blocking Python calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from airflow_batch_llm.client.answers import checked, parsed, translated
from airflow_batch_llm.client.replicas import REPEATABLE, base_urls, sync_transport
from airflow_batch_llm.errors import UnauthorizedError
from airflow_batch_llm.models import PauseReason
from airflow_batch_llm.wire import (
    Batch,
    BatchCancel,
    BatchCreate,
    BatchList,
    BatchResume,
    FileObject,
    Health,
    ModelList,
    ResultPage,
    ResultRow,
)

DEFAULT_URL: Final = "http://127.0.0.1:8765"
ANSWER_SECONDS: Final = 30.0
TIMEOUT: Final = httpx.Timeout(ANSWER_SECONDS, connect=5.0)
PAGE_ROWS: Final = 1000
"""Rows of one page of results: the most that the service gives."""
PAGE_BATCHES: Final = 100
"""Batches of one page: the most that the service gives."""
UPLOAD_SECONDS: Final = 3600.0
"""A file of gigabytes is answered only once the service has stored it."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class BatchClient:
    """Blocking client of one batch service: ours, or another server with OpenAI's batch API.

    Raises :class:`~airflow_batch_llm.errors.RefusedError` for what the service refuses and
    :class:`~airflow_batch_llm.errors.NoAnswerError` where nothing is known. Never repeats a call by itself. Another
    server has no ``find``, ``results``, ``retry``, ``pause`` and no models of ours, and says so by a refusal.

    ``url`` may be several addresses of one service with commas between them: where one does not answer, the next one is
    asked, with whatever may be said twice.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        urls = base_urls(url)
        self.url = ",".join(urls)
        with translated(self.url):
            self._http = httpx.Client(
                base_url=urls[0], headers=headers(token), timeout=timeout, transport=sync_transport(urls)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> Health | None:
        """Which service this is and what it takes; None where another server answers. Needs no token."""
        with translated(self.url):
            response = self._http.get("/healthz")
        if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            checked(response, self.url)
        try:
            return Health.model_validate_json(response.content) if response.is_success else None
        except ValidationError:
            return None

    def submit(self, create: BatchCreate, *, idempotency_key: str | None = None) -> Batch:
        """Stores a batch and gives it as it stands; with a known key, the batch that lives under it."""
        return self._call(
            Batch,
            "POST",
            "/v1/batches",
            # What nobody asked for is not sent: other servers refuse fields that they do not know.
            json=create.model_dump(mode="json", exclude_defaults=True),
            headers={"Idempotency-Key": idempotency_key} if idempotency_key else {},
            extensions={"repeatable": bool(idempotency_key or create.key)},
        )

    def get(self, batch_id: str) -> Batch:
        return self._call(Batch, "GET", f"/v1/batches/{segment(batch_id)}")

    def list(self, *, after: str | None = None, limit: int = 20, group: str | None = None) -> BatchList:
        """One page of batches, newest first; ``after`` is the id of the last one seen, ``limit`` 1 to 100.

        With ``group`` only those that were submitted with that group.
        """
        return self._call(BatchList, "GET", "/v1/batches", params=present(after=after, limit=limit, group=group))

    def of_group(self, group: str) -> Iterator[Batch]:
        """All batches that were submitted with a group, newest first, page after page."""
        after: str | None = None
        while True:
            page = self.list(after=after, limit=PAGE_BATCHES, group=group)
            yield from page.data
            after = page.last_id
            if not page.has_more:
                return

    def find(self, key: str) -> Batch | None:
        """The newest generation of the batch under a key; None where no batch was ever submitted under it."""
        page = self._call(BatchList, "GET", "/v1/batches", params={"key": key, "limit": 1})
        return page.data[0] if page.data else None

    def cancel(self, batch_id: str, *, holder: str | None = None) -> Batch:
        """Asks for the batch's end; what was done is kept. With a ``holder`` it counts only while that holds it."""
        return self._call(
            Batch, "POST", f"/v1/batches/{segment(batch_id)}/cancel", json=cancel_body(holder), extensions=REPEATABLE
        )

    def retry(self, batch_id: str) -> Batch:
        """A new generation of an ended batch, for its rows that failed, expired or were cancelled."""
        return self._call(Batch, "POST", f"/v1/batches/{segment(batch_id)}/retry", extensions=REPEATABLE)

    def pause(self, batch_id: str) -> Batch:
        """Keeps workers from getting more of a batch, until it is resumed; what they hold goes on to its end."""
        return self._call(Batch, "POST", f"/v1/batches/{segment(batch_id)}/pause", extensions=REPEATABLE)

    def resume(self, batch_id: str, *, reason: PauseReason | None = None) -> Batch:
        """Lets a paused batch go on, whoever paused it; with a ``reason`` only one that is paused for that."""
        body = BatchResume(reason=reason).model_dump(mode="json")
        return self._call(Batch, "POST", f"/v1/batches/{segment(batch_id)}/resume", json=body, extensions=REPEATABLE)

    def models(self) -> ModelList:
        """The models that living workers serve. Needs a valid token, so it also tests a connection."""
        return self._call(ModelList, "GET", "/v1/models")

    def results(
        self, batch_id: str, *, limit: int | None = None, status: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """The rows of a batch in source order, page after page, as dictionaries.

        Of a table its target's columns; of a request file ``custom_id``, ``status``, ``response`` and ``error``.
        """
        for row in self.result_rows(batch_id, limit=limit, status=status):
            if row.columns is not None:
                yield row.columns
            else:
                yield row.model_dump(mode="json", include={"custom_id", "status", "response", "error"})

    def result_rows(self, batch_id: str, *, limit: int | None = None, status: str | None = None) -> Iterator[ResultRow]:
        """The first ``limit`` rows (or all), those of one ``status`` if given, with their number in the source."""
        after, left = None, limit
        while left is None or left > 0:
            asked = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
            params = present(after=after, limit=asked, status=status)
            page = self._call(ResultPage, "GET", f"/v1/batches/{segment(batch_id)}/results", params=params)
            yield from page.data
            after = page.last_id
            left = None if left is None else left - len(page.data)
            if not page.has_more or after is None:
                return

    def upload(self, path: Path, *, purpose: str = "batch", expires_after: int | None = None) -> FileObject:
        """Stores a file of requests (or, with purpose ``dataset``, a table), streamed from disk.

        It goes ``expires_after`` seconds from now, if that is given.
        """
        with path.open("rb") as stream:
            return self._upload(path.name, stream, purpose, expires_after)

    def upload_bytes(self, name: str, content: bytes, *, purpose: str = "batch") -> FileObject:
        """Stores a file of requests that is in memory anyway."""
        return self._upload(name, content, purpose, None)

    def file(self, file_id: str) -> FileObject:
        return self._call(FileObject, "GET", f"/v1/files/{segment(file_id)}")

    def file_lines(self, file_id: str) -> Iterator[bytes]:
        """The lines of a file without their line feeds, streamed."""
        path = f"/v1/files/{segment(file_id)}/content"
        with translated(self.url), self._http.stream("GET", path, follow_redirects=True) as response:
            if not response.is_success:
                response.read()
            checked(response, self.url)
            yield from _lines(response.iter_bytes())

    def delete_file(self, file_id: str) -> None:
        with translated(self.url):
            response = self._http.delete(f"/v1/files/{segment(file_id)}")
        checked(response, self.url)

    def _upload(self, name: str, content: IO[bytes] | bytes, purpose: str, expires_after: int | None) -> FileObject:
        form = {"purpose": purpose}
        if expires_after is not None:
            form |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after)}
        return self._call(
            FileObject,
            "POST",
            "/v1/files",
            files={"file": (name, content)},
            data=form,
            timeout=httpx.Timeout(UPLOAD_SECONDS, connect=TIMEOUT.connect),
        )

    def _call(self, kind: type[_Answer], method: str, path: str, **request: Any) -> _Answer:
        with translated(self.url):
            response = self._http.request(method, path, **request)
        return parsed(kind, response, self.url)


def cancel_body(holder: str | None) -> dict[str, str] | None:
    """What a cancel says; nothing at all without a holder, since other servers take no body there."""
    return None if holder is None else BatchCancel(holder=holder).model_dump(exclude_none=True)


def segment(name: str) -> str:
    """An id as one piece of a path, whatever is in it: nothing of it leads to another call."""
    quoted = quote(name, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E") or "%20"


def headers(token: str | None) -> dict[str, str]:
    """What every call carries. Raises :class:`UnauthorizedError` for a token that no header can."""
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise UnauthorizedError(
            "The token has characters that no token has: it is letters, digits and signs of ASCII, on one line. "
            "Nothing was sent. Was it copied whole, and nothing beside it?",
            code="invalid_api_key",
        )
    return {"Authorization": f"Bearer {token}"}


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cut at line feeds only: a JSON text may hold the other characters that end a line in Unicode."""
    pieces: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        pieces.append(first)
        for other in others:
            yield b"".join(pieces)
            pieces = [other]
    if any(pieces):
        yield b"".join(pieces)


def present(**values: Any) -> dict[str, Any]:
    """The parameters of a call that have a value."""
    return {name: value for name, value in values.items() if value is not None}
