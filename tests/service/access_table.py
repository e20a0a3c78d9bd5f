"""Who may make which call: ``python -m tests.service.access_table`` prints the table, with a real service's answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

import tests.demo_path  # noqa: F401
from airflow_batch_llm.models import Scope
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.worker_wire import ResultLine, pack
from tests.conftest import RunningService, running_service
from tests.service.two_teams import BLUE, MARK, NOTHING, RED, Things, red_things, revoked_token, token_of

READ, SUBMIT, WORKER = Scope.READ, Scope.SUBMIT, Scope.WORKER
NO_BATCH, NO_FILE, NO_WORKER = "404 batch_not_found", "404 file_not_found", "404 worker_unknown"
NO_LEASE = "409 lease_lost"
"""What an attempt hears that never was. A worker drops its work then, so it is not a 404."""
OPEN = {"/healthz"}
"""What the description tells of that needs no token."""

Body = Callable[[Things], dict[str, Any]]


def _nothing(_: Things) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Call:
    """A call, the scope that it needs, what its owner hears, and what another team hears of the owner's thing."""

    method: str
    path: str
    scope: Scope
    own: str
    other: str
    sends: Body = _nothing

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def make(self, http: httpx.Client, about: Things, token: str | None, *, team: str | None = None) -> httpx.Response:
        """Makes the call, with ``?team=`` where a team is given."""
        sent = self.sends(about) | ({} if team is None else {"params": {"team": team}})
        headers = sent.pop("headers", {}) | ({} if token is None else {"Authorization": f"Bearer {token}"})
        return http.request(self.method, self.path.format(**asdict(about)), headers=headers, **sent)


def _batch(there: Things) -> dict[str, Any]:
    create = {"input_file_id": there.file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return {"json": create}


def _watch(there: Things) -> dict[str, Any]:
    return {"json": {"batches": {there.batch_id: None, there.running_id: None}}}


def _overview(_: Things) -> dict[str, Any]:
    return {"json": {"visible_dag_ids": None, "search": "batch"}}


def _upload(_: Things) -> dict[str, Any]:
    return {"files": {"file": ("a.jsonl", b"{}\n")}, "data": {"purpose": "batch"}}


def _registration(_: Things) -> dict[str, Any]:
    served = [{"model": "another", "endpoint": "/v1/chat/completions"}]
    return {"json": {"name": "new", "version": "1", "models": served}}


def _claim(there: Things) -> dict[str, Any]:
    return {"json": {"worker_id": there.worker_id}}


def _part(_: Things) -> dict[str, Any]:
    content = pack([ResultLine(0, "success", output="a")])
    return {"content": content, "headers": {"Content-Type": "application/zstd"}}


def _attempt(there: Things) -> dict[str, Any]:
    return {"json": {"attempt": there.attempt}}


def _release(there: Things) -> dict[str, Any]:
    return {"json": {"attempt": there.attempt, "outcome": "drained"}}


ATTEMPT = "/worker/v1/chunks/{chunk_id}/attempts/{attempt}"
CALLS = [
    Call("GET", "/v1/models", READ, "200", "200"),
    Call("GET", "/v1/whoami", READ, "200", "200"),
    Call("GET", "/v1/workers", READ, "200", "200"),
    Call("GET", "/v1/batches", READ, "200", "200"),
    Call("POST", "/v1/batches", SUBMIT, "200", NO_FILE, _batch),
    Call("GET", "/v1/batches/{batch_id}", READ, "200", NO_BATCH),
    Call("DELETE", "/v1/batches/{batch_id}", SUBMIT, "200", NO_BATCH),
    Call("POST", "/v1/batches/{batch_id}/cancel", SUBMIT, "200", NO_BATCH),
    Call("POST", "/v1/batches/{batch_id}/retry", SUBMIT, "200", NO_BATCH),
    Call("POST", "/v1/batches/{batch_id}/pause", SUBMIT, "409 batch_ending", NO_BATCH),
    Call("POST", "/v1/batches/{batch_id}/resume", SUBMIT, "409 batch_ending", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/results", READ, "200", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/rows", READ, "200", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/answers", READ, "200", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/download", READ, "200", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/events", READ, "200", NO_BATCH),
    Call("GET", "/v1/batches/{batch_id}/report", READ, "200", NO_BATCH),
    Call("POST", "/v1/batches/watch", READ, "200", "200", _watch),
    Call("POST", "/v1/batches/overview", READ, "200", "200", _overview),
    Call("GET", "/v1/files", READ, "200", "200"),
    Call("POST", "/v1/files", SUBMIT, "200", "200", _upload),
    Call("GET", "/v1/files/{file_id}", READ, "200", NO_FILE),
    Call("GET", "/v1/files/{file_id}/content", READ, "200", NO_FILE),
    Call("DELETE", "/v1/files/{file_id}", SUBMIT, "200", NO_FILE),
    Call("GET", "/worker/v1/access", WORKER, "204", "204"),
    Call("POST", "/worker/v1/register", WORKER, "200", "200", _registration),
    Call("POST", "/worker/v1/workers/{worker_id}/leave", WORKER, "204", NO_WORKER),
    Call("POST", "/worker/v1/claim", WORKER, "200", NO_WORKER, _claim),
    Call("GET", f"{ATTEMPT}/rows", WORKER, "200", NO_LEASE),
    Call("PUT", f"{ATTEMPT}/parts/{{part}}", WORKER, "204", NO_LEASE, _part),
    Call("POST", "/worker/v1/chunks/{chunk_id}/begin", WORKER, "200", NO_LEASE, _attempt),
    Call("POST", "/worker/v1/chunks/{chunk_id}/extend", WORKER, "200", NO_LEASE, _attempt),
    Call("POST", "/worker/v1/chunks/{chunk_id}/commit", WORKER, "409 rows_missing", NO_LEASE, _attempt),
    Call("POST", "/worker/v1/chunks/{chunk_id}/release", WORKER, "204", NO_LEASE, _release),
]
"""``other`` is 200 where a call is about no thing: then what it shows must be the caller's own."""

WHO = (
    "no token",
    "a wrong token",
    "a revoked token",
    "without the scope",
    "another team",
    "another team, ?team=",
    "its owner",
)


@dataclass(frozen=True)
class Asked:
    """What each of ``WHO`` heard, and what the other team hears about things that there are not."""

    things: Things
    heard: dict[str, httpx.Response]
    about_nothing: httpx.Response

    def answers(self) -> list[str]:
        return [heard_as(self.heard[who]) for who in WHO]


def ask(service: RunningService, call: Call) -> Asked:
    """Makes a call as everybody, with the owner last: it may end the thing."""
    owner, other = token_of(service, RED), token_of(service, BLUE)
    lacking = [scope for scope in (READ, SUBMIT, WORKER) if scope != call.scope]
    things = red_things(service, owner)
    tokens = dict(
        zip(
            WHO,
            (None, "bl-wrong", revoked_token(service, RED), token_of(service, RED, *lacking), other, other, owner),
            strict=True,
        )
    )
    with httpx.Client(base_url=service.url) as http:
        about_nothing = call.make(http, NOTHING, other)
        heard = {
            who: call.make(http, things, token, team=RED if who.endswith("?team=") else None)
            for who, token in tokens.items()
        }
    return Asked(things, heard, about_nothing)


def expected(call: Call) -> list[str]:
    refused = "401 invalid_api_key"
    return [refused, refused, refused, "403 insufficient_scope", call.other, "403 team_not_allowed", call.own]


def heard_as(response: httpx.Response) -> str:
    code = response.json()["error"]["code"] if response.is_error else ""
    return f"{response.status_code} {code}".strip()


def table(service: RunningService) -> Iterator[str]:
    """The table as Markdown, a line at a time."""
    yield f"| call | scope | {' | '.join(WHO)} |"
    yield f"|{'---|' * (len(WHO) + 2)}"
    for call in CALLS:
        asked = ask(service, call)
        told = asked.things.unnamed(asked.heard["another team"].text)
        secret = ", and is told what it should not know" if MARK in told else ""
        answers = asked.answers()
        yield f"| `{call}` | {call.scope} | {' | '.join(answers)}{secret} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        from pool import free_port

        settings = ServiceSettings(home=folder / "home", data_roots=(folder / "data",), port=free_port())
        state = ServiceState.open(settings)
        with running_service(state, settings.token_path.read_text().strip()) as service:
            for line in table(service):
                print(line, flush=True)


if __name__ == "__main__":
    main()
