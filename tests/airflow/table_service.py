"""What a task sees of a service of ours when it uploads a table, in memory over real HTTP: files, keys, generations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

from foreign_server import ForeignServer, serving

ENDED_EARLY = ("failed", "expired", "cancelled")


class TableService(ForeignServer):
    """Batches by key, of generations; a batch completes, or ends, when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[dict[str, str], bytes]] = {}
        """The form's fields and the content of each upload, by its id."""
        self.calls: list[str] = []
        self.submits: list[dict[str, Any]] = []
        """The bodies of all submits."""
        self.failing: list[tuple[int, str, str]] = []
        """Row, status and sentence of the rows that failed."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        split = urlsplit(path)
        query = parse_qs(split.query)
        self.calls.append(f"{method} {split.path}")
        match [method, *split.path.strip("/").split("/")]:
            case ["GET", "healthz"]:
                return _ok({"version": "1", "extensions": True, "service": "airflow-batch-llm", "status": "ok"})
            case ["POST", "v1", "files"]:
                return _ok(self._stored(body))
            case ["GET", "v1", "batches"]:
                under = [batch for batch in self.batches if batch["key"] == query["key"][0]]
                return _ok({"data": under[:1], "has_more": False})
            case ["POST", "v1", "batches"]:
                return self._submitted(json.loads(body))
            case ["POST", "v1", "batches", batch_id, "retry"] if batch := self.batch(batch_id):
                return _ok(self._new(batch))
            case ["GET", "v1", "batches", _, "results"]:
                rows = [row for row in self.failing if row[1] == query["status"][0]][: int(query["limit"][0])]
                data = [{"row": row, "status": status, "columns": {"llm_error": why}} for row, status, why in rows]
                return _ok({"data": data, "last_id": None, "has_more": False})
        return super().answer(method, path, body)

    def uploaded_rows(self) -> list[dict[str, Any]]:
        """The rows of the one file that was uploaded."""
        [(_, content)] = self.files.values()
        return [json.loads(line) for line in content.splitlines()]

    def end(self, batch_id: str, status: str = "completed", *, total: int = 2) -> None:
        batch = self.batch(batch_id)
        assert batch is not None
        failed = len(self.failing)
        batch["status"] = status
        batch["request_counts"] = {"total": total, "completed": total - failed, "failed": failed}

    def _stored(self, body: bytes) -> dict[str, Any]:
        fields, content = _form(body)
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = fields, content
        return {"id": file_id, "bytes": len(content), "created_at": 0, "filename": "f", "purpose": fields["purpose"]}

    def _submitted(self, create: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        self.submits.append(create)
        sources = (create.get("dataset") or {}).get("source", [])
        gone = [source for source in sources if source.startswith("file-") and source not in self.files]
        if gone:
            error = {"message": f"No such file: {gone[0]}.", "type": "x", "code": "file_not_found", "param": "source"}
            return 404, {}, json.dumps({"error": error}).encode()
        last = next((batch for batch in self.batches if batch["key"] == create["key"]), None)
        if last is not None and last["status"] not in ENDED_EARLY:
            last["holder"] = create["holder"]
            return _ok(last)
        return _ok(self._new({**create, "generation": last["generation"] if last else 0}))

    def _new(self, before: dict[str, Any]) -> dict[str, Any]:
        made = {"endpoint": "/v1/chat/completions", **before, "id": f"batch_{len(self.batches)}", "created_at": 0}
        made |= {"status": "in_progress", "team": "default", "generation": before["generation"] + 1}
        made.pop("request_counts", None)
        self.batches.insert(0, made)
        return made


@contextmanager
def running_table_service() -> Iterator[TableService]:
    with serving(TableService()) as service:
        yield service


def _form(body: bytes) -> tuple[dict[str, str], bytes]:
    boundary = body.split(b"\r\n", 1)[0][2:].decode()
    whole = f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n".encode() + body
    fields: dict[str, str] = {}
    content = b""
    for part in BytesParser(policy=HTTP).parsebytes(whole).iter_parts():
        value = part.get_payload(decode=True)
        assert isinstance(value, bytes)
        name = part.get_param("name", header="content-disposition")
        if name == "file":
            content = value
            fields["filename"] = str(part.get_filename())
        else:
            fields[str(name)] = value.decode()
    return fields, content


def _ok(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(value).encode()
