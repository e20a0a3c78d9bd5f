"""Numbers that no worker has a reason to send: refused with a sentence, and nobody's batches are the worse for it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from airflow_batch_llm.service.doctor import Doctor
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.worker_wire import Claim, ResultLine, pack
from tests.conftest import RunningService
from tests.postgres import BOTH_STORES
from tests.service.answering import AnsweringWorker
from tests.service.keeping import submit
from tests.service.test_service_fuzz import WHOLE, readable

CONTENT = pack([ResultLine(0, "success", output="A")])
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LONG = "9" * 25
COUNTS = ["number", "rows", "rows_failed"]
AMOUNTS = ["bytes", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"]


@dataclass
class HostileWorker:
    """Holds a chunk, and says of its parts whatever a test wants it to."""

    service: RunningService
    worker: AnsweringWorker
    claim: Claim
    http: httpx.Client
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def post(self, path: str, body: Any) -> httpx.Response:
        """As any client might send it: with numbers that JSON does not have."""
        headers = {"Content-Type": "application/json"}
        return self.http.post(f"/worker/v1/{path}", headers=headers, content=json.dumps(body))

    def extend(self, **said: Any) -> httpx.Response:
        number = next(self.numbers)
        self.worker.link.put_part(self.claim, number, CONTENT)
        record = {"number": number, "bytes": len(CONTENT), "sha256": SHA256, "gpu_seconds": 0.1}
        counts = dict.fromkeys(("rows", "rows_failed", *AMOUNTS[1:]), 0)
        body = {"attempt": self.claim.attempt, "parts": [record | counts | said]}
        return self.post(f"chunks/{self.claim.chunk_id}/extend", body)

    def shown(self) -> dict[str, Any]:
        """The batch, after a look at whether all that shows it still does."""
        for path in ("/v1/batches", f"/v1/batches/{self.claim.batch_id}/results"):
            answer = self.http.get(path)
            assert answer.status_code == 200, answer.text
        return self.service.client.get(self.claim.batch_id).progress.model_dump()


@pytest.fixture
def hostile(service: RunningService) -> Iterator[HostileWorker]:
    submit(service)
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    headers = {"Authorization": f"Bearer {service.token}"}
    with httpx.Client(base_url=service.url, headers=headers, verify=False) as http:  # noqa: S501 (there is no TLS)
        yield HostileWorker(service, worker, claimed[0], http)


def refused(answer: httpx.Response, place: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, place in error["param"]) == (400, True), answer.text
    assert readable(error["message"])


@BOTH_STORES
def test_a_part_that_counts_what_cannot_be_is_refused_and_its_batch_stays_readable(hostile: HostileWorker) -> None:
    before = hostile.shown()
    for name in (*COUNTS, *AMOUNTS):
        for said in (-7, 2**62, 2**64, "-7", str(2**62), LONG, "9" * 5_000, 0.5, "0.5", "nan", None, [], {}):
            refused(hostile.extend(**{name: said}), name)
    for said in (-0.1, "-1", "inf", "nan", "Infinity", "1e400", 1e300, "1e308", float("inf"), float("nan"), None):
        refused(hostile.extend(gpu_seconds=said), "gpu_seconds")
    for said in ("../../x", SHA256.upper(), SHA256[:-1], f"{SHA256}\n", "", 7):
        refused(hostile.extend(sha256=said), "sha256")
    refused(hostile.extend(rows=1, rows_failed=2), "parts.0")
    assert hostile.shown() == before


@BOTH_STORES
def test_the_most_that_a_part_may_count_can_be_added_up_and_shown(hostile: HostileWorker) -> None:
    """Without rows, of which its chunk has three."""
    most = dict.fromkeys(AMOUNTS[1:], 2**40)
    for _ in range(3):
        assert hostile.extend(**most, gpu_seconds=1e9).status_code == 200
    shown = hostile.shown()
    assert (shown["prompt_tokens"], shown["gpu_seconds"]) == (3 * 2**40, 3e9)


@BOTH_STORES
@pytest.mark.parametrize("said", [-1, 2**31, str(2**31), "99999999999999999999", LONG, "9" * 5_000, "nan", 1.5, None])
def test_an_attempt_that_cannot_be_is_refused(hostile: HostileWorker, said: Any) -> None:
    chunk = f"chunks/{hostile.claim.chunk_id}"
    for path, more in (("extend", {}), ("commit", {}), ("release", {"outcome": "drained"})):
        refused(hostile.post(f"{chunk}/{path}", {"attempt": said, **more}), "attempt")
    died = {"attempt": hostile.claim.attempt, "outcome": "engine_died"}
    refused(hostile.post(f"{chunk}/release", died | {"rows_lost": said}), "rows_lost")
    if said not in (2**31, str(2**31)):  # a table may have more rows than that
        refused(hostile.post(f"{chunk}/release", died | {"in_flight": [said]}), "in_flight")
    assert hostile.worker.link.extend(hostile.claim, []).stop is False


NUMBERS = st.integers() | st.integers(2**30, 2**66) | st.floats()
ANYTHING = NUMBERS | NUMBERS.map(str) | st.sampled_from([None, True, "", " 1", "1_0", "1e3", "0x1", "²", "٣", [1], {}])


def test_any_number_of_a_worker_is_taken_or_refused_with_a_sentence(hostile: HostileWorker) -> None:
    @settings(
        max_examples=1_000 if WHOLE else 60,
        derandomize=not WHOLE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(name=st.sampled_from([*COUNTS, *AMOUNTS, "gpu_seconds"]), said=ANYTHING)
    @example(name="gpu_seconds", said="nan")
    @example(name="prompt_tokens", said=LONG)
    def check(name: str, said: Any) -> None:
        answer = hostile.extend(**{name: said})
        assert answer.status_code in (200, 400, 409), answer.text  # 409: there is no part of such a number
        assert answer.status_code == 200 or readable(answer.json()["error"]["message"])
        hostile.shown()

    check()


def test_the_doctor_tells_of_a_record_that_cannot_be_shown_and_goes_on(hostile: HostileWorker) -> None:
    service = hostile.service
    other = submit(service, name="other")
    with service.state.database.writing() as connection:
        spoilt = update(batches).where(batches.c.id == hostile.claim.batch_id)
        connection.execute(spoilt.values(prompt_tokens=2.0**63))  # what SQLite makes of a sum beyond 64 bits
    checks = {check.name: check for check in Doctor.open(service.settings).examine()}
    [finding] = checks["waiting_batches"].findings
    assert finding["which"] == hostile.claim.batch_id != other.id
    assert "cannot be shown" in finding["says"]
    assert "missing_objects" in checks
