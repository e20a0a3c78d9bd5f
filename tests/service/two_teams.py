"""Team red with real things in a service, and the tokens of those who ask for them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.models import CHAT_COMPLETIONS, Scope
from airflow_batch_llm.store.tokens import Access, new_token
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, line, openai_client

RED, BLUE = "red", "blue"
MARK = "scarlet"
"""A word in whatever red has: nobody else may see it."""
MODEL = f"{MARK}-model"
USUAL = (Scope.READ, Scope.SUBMIT, Scope.WORKER)


@dataclass(frozen=True)
class Things:
    """What a call may be about, by the names that the API's description uses. Made up, unless they were made."""

    batch_id: str = "batch_00000000000000000000000000000000"
    running_id: str = "batch_00000000000000000000000000000001"
    file_id: str = "file-00000000000000000000000000000000"
    worker_id: str = "worker-00000000000000000000000000000000"
    chunk_id: int = 987_654_321
    attempt: int = 1
    part: int = 7

    @property
    def ids(self) -> list[str]:
        return [str(value) for name, value in dataclasses.asdict(self).items() if name.endswith("_id")]

    def unnamed(self, text: str) -> str:
        """The text with the names of the things in it replaced by what they are names of."""
        for name, value in dataclasses.asdict(self).items():
            if name.endswith("_id"):
                text = text.replace(str(value), name)
        return text


NOTHING = Things()


def token_of(service: RunningService, team: str, *scopes: Scope, all_teams: bool = False) -> str:
    """A new token of the team; with all that a team needs unless scopes are named."""
    token = new_token()
    service.state.tokens.add(token, name="test", team=team, scopes=scopes or USUAL, all_teams=all_teams)
    return token


def revoked_token(service: RunningService, team: str) -> str:
    token = new_token()
    record = service.state.tokens.add(token, name="test", team=team, scopes=list(Scope))
    service.state.tokens.revoke(record.id)
    assert service.state.tokens.access_of(token) is None
    return token


def as_caller(service: RunningService, token: str) -> RunningService:
    """The service as it is for whoever holds the token."""
    return dataclasses.replace(service, token=token)


def red_things(service: RunningService, token: str) -> Things:
    """A batch of red's that ended with a failed row, one with a chunk under lease, and one that waits for a worker."""
    red, client = as_caller(service, token), openai_client(service, token)
    worker = AnsweringWorker(red, model=MODEL, failing=[1], name=f"{MARK}-worker")
    ended = create(client, _rows(), metadata={"note": MARK})
    _plan(service)
    worker.work()
    while service.assemble():
        pass
    running = create(client, _rows(), metadata={"note": MARK})
    _plan(service)
    claim, _ = worker.claim() or (None, None)
    assert claim is not None
    create(client, _rows(), metadata={"note": MARK})
    _plan(service)
    return Things(
        batch_id=ended.id,
        running_id=running.id,
        file_id=running.input_file_id or "",
        worker_id=worker.worker_id,
        chunk_id=claim.chunk_id,
        attempt=claim.attempt,
    )


def access_of(service: RunningService, token: str) -> Access:
    found = service.state.tokens.access_of(token)
    assert found is not None
    return found


def _rows() -> bytes:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": MARK}]}
    return file_of(json.dumps(line(number, endpoint=CHAT_COMPLETIONS, body=body)) for number in range(3))


def _plan(service: RunningService) -> None:
    while service.plan():
        pass
