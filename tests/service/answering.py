"""A worker without an engine, over the real worker API: it answers each row with its number."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
from collections.abc import Container, Iterable
from typing import Any

import msgspec

from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.models import ENDPOINTS
from airflow_batch_llm.wire import Batch
from airflow_batch_llm.worker.service_link import ServiceLink
from airflow_batch_llm.worker.work import lines_to_ask
from airflow_batch_llm.worker_wire import (
    Claim,
    PartRecord,
    Registration,
    ResultLine,
    RowLine,
    ServedModel,
    pack,
)
from tests.conftest import RunningService

MOST_ASSEMBLED = 100
MOST_PARTS = 20
"""Of one chunk, or nearly: hundreds of them would show nothing more, and take the most of a test's time."""


class AnsweringWorker:
    """Does chunks in parts of ``part_rows``, in an order of its own. Requests in ``failing`` rows are answered 400, and
    those in ``invalid`` rows with what does not fit.

    One that never ``begins`` does not say so, as workers did not at first.
    """

    def __init__(
        self,
        service: RunningService,
        *,
        part_rows: int = 3,
        model: str = "m",
        endpoints: Iterable[str] = ENDPOINTS,
        body_fields: list[str] | None = None,
        failing: Container[int] = (),
        invalid: Container[int] = (),
        engine_identity: str | None = None,
        name: str = "w",
        begins: bool = True,
    ) -> None:
        self.failing = failing
        self.invalid = invalid
        self.begins = begins
        self.asked: list[int] = []
        """The rows that were answered, in their order."""
        self.link = _link(service.url, service.token)
        self.part_rows = part_rows
        served = [
            ServedModel(model=model, endpoint=endpoint, body_fields=body_fields, engine_identity=engine_identity)
            for endpoint in endpoints
        ]
        self.worker_id = self.link.register(Registration(name=name, version="1", models=served)).worker_id

    def claim(self) -> tuple[Claim, list[RowLine]] | None:
        claim = self.link.claim(self.worker_id)
        if claim is None:
            return None
        lines = list(lines_to_ask(claim, self.link.rows(claim)))
        if lines and self.begins:
            self._begin(claim)
        random.Random(claim.chunk_id).shuffle(lines)
        return claim, lines

    def _begin(self, claim: Claim) -> None:
        """Asked again where the answer takes longer than a slow machine gave it, as by a real worker."""
        for _ in range(2):
            with contextlib.suppress(NoAnswerError):
                assert not self.link.begin(claim).wait
                return
        assert not self.link.begin(claim).wait

    def store(self, claim: Claim, number: int, lines: list[RowLine]) -> PartRecord:
        self.asked += [line.row for line in lines]
        results = [self._whole(line) if claim.whole else self._answer(line) for line in lines]
        if number == 0:
            results += [ResultLine(row.row, "error", code=row.code, error=row.message) for row in claim.condemned]
        content = pack(results)
        self.link.put_part(claim, number, content)
        return PartRecord(
            number=number,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            rows=len(results),
            rows_failed=sum(result.status != "success" for result in results),
            prompt_tokens=len(lines),
            cached_tokens=0,
            completion_tokens=0,
            gpu_seconds=0.0,
        )

    def _answer(self, line: RowLine) -> ResultLine:
        if line.row in self.failing:
            return ResultLine(line.row, "error", code="engine_refused", error=f"row {line.row} is refused")
        if line.row in self.invalid:
            said = {"code": "not_a_choice", "error": f"row {line.row} does not fit", "output": f"noise {line.row}"}
            return ResultLine(line.row, "invalid_output", **said)
        return ResultLine(line.row, "success", output=f"answer {line.row}", finish_reason="stop", prompt_tokens=1)

    def _whole(self, line: RowLine) -> ResultLine:
        """The request's own body comes back, so that a test can see whose answer is whose."""
        if line.row in self.failing:
            refusal = {"error": {"message": f"row {line.row} is refused", "type": "BadRequestError", "code": 400}}
            raw = msgspec.Raw(msgspec.json.encode(refusal))
            return ResultLine(line.row, "error", code="engine_refused", error="…", status_code=400, response=raw)
        usage = b'{"prompt_tokens":1,"completion_tokens":0,"total_tokens":1}'
        choices = (
            b'[{"index":0,"message":{"role":"assistant","content":"answer %d"},"finish_reason":"stop"}]' % line.row
        )
        body = b'{"echo":%b,"choices":%b,"usage":%b}' % (bytes(line.body), choices, usage)
        return ResultLine(line.row, "success", prompt_tokens=1, status_code=200, response=msgspec.Raw(body))

    def work(self) -> int:
        """Does all chunks there are; gives how many rows that were."""
        done = 0
        while (claimed := self.claim()) is not None:
            claim, lines = claimed
            size = max(self.part_rows, len(lines) // MOST_PARTS)
            pieces = [lines[at : at + size] for at in range(0, len(lines), size)]
            for number, piece in enumerate(pieces[:-1]):
                self.link.extend(claim, [self.store(claim, number, piece)])
            self.link.commit(claim, [self.store(claim, len(pieces), pieces[-1])] if pieces else [])
            done += len(lines)
        return done


@functools.cache
def _link(url: str, token: str) -> ServiceLink:
    return ServiceLink(url, token)  # to make one takes longer than all of its calls in a test


def answer_all(service: RunningService, batch: Batch, *, assemble_once: bool = False) -> list[dict[str, Any]]:
    """Plans, answers and assembles a batch; gives its target's rows (none if it did not end)."""
    while service.plan():
        pass
    AnsweringWorker(service).work()
    for _ in range(MOST_ASSEMBLED):
        if not service.assemble() or assemble_once:
            break
    else:
        raise AssertionError(f"There is something to assemble after {MOST_ASSEMBLED} times, too.")
    return list(service.client.results(batch.id)) if service.client.get(batch.id).status.ended else []
