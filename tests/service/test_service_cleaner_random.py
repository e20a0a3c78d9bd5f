"""The cleaner deletes nothing that anything needs: batches in any state, cleaned at any time, still have every row."""

from __future__ import annotations

import io
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from sqlalchemy import Double, bindparam, select

from airflow_batch_llm.errors import ConflictError, NotFoundError
from airflow_batch_llm.service import duties
from airflow_batch_llm.service.duty_context import DutyContext
from airflow_batch_llm.service.parts import stored_results
from airflow_batch_llm.store.claimable import ClaimableChunks
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.tables import batches
from airflow_batch_llm.wire import BatchCreate, DatasetSpec, Message
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.keeping import DAY, House
from tests.service.requests import file_of, line, openai_client

WORDS = [f"word {number}" for number in range(12)]
REFUSALS = {"results_expired", "nothing_to_retry", "superseded", "not_retryable", "file_not_found"}
STEPS = 45


@dataclass
class Chaos:
    """Does at random what users, workers, duties and time do; every process looks at the same clock."""

    service: RunningService
    client: OpenAI
    chance: random.Random
    house: House
    worker: AnsweringWorker
    tables: dict[str, list[str]] = field(default_factory=dict)
    """The texts of each table, by name; its batches have that as their key."""
    files: dict[str, int] = field(default_factory=dict)
    """The rows of each batch of a request file."""
    ids: dict[str, str] = field(default_factory=dict)
    """The table of each batch."""
    done: set[str] = field(default_factory=set)

    def step(self) -> None:
        steps = [self.new_table, self.again, self.new_file, self.plan, self.some_work, self.work, self.assemble]
        steps += [self.cancel, self.retry, self.clean, self.clean, self.wait_long_for_a_plan]
        self.chance.choice(steps)()

    def new_table(self) -> None:
        name = f"t{len(self.tables)}"
        self.tables[name] = self.chance.choices(WORDS, k=self.chance.randrange(1, 9))
        pq.write_table(pa.table({"text": self.tables[name]}), self.service.data_root / f"{name}.parquet")
        self.submit(name)

    def again(self) -> None:
        if self.tables:
            self.submit(self.chance.choice(list(self.tables)))

    def submit(self, name: str) -> None:
        spec = DatasetSpec(
            source=f"{name}.parquet", target=f"{name}-out.parquet", messages=[Message(role="user", content="{text}")]
        )
        number = int(name[1:])
        more: dict[str, Any] = {"completion_window": "3d"} if number % 4 == 3 else {}
        reuse = "never" if number % 3 == 2 else "auto"
        batch = self.service.client.submit(BatchCreate(dataset=spec, model="m", key=name, reuse=reuse, **more))
        self.ids[batch.id] = name

    def new_file(self) -> None:
        rows = self.chance.randrange(1, 7)
        content = io.BytesIO(file_of(line(number) for number in range(rows)))
        stored = self.client.files.create(
            file=("r.jsonl", content),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": self.chance.choice([3_600, 2_592_000])},
        )
        batch = self.client.batches.create(
            input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="90d"
        )
        self.files[batch.id] = rows

    def plan(self) -> None:
        self.service.plan()

    def some_work(self) -> None:
        claimed = self.worker.claim()
        if claimed is None:
            return
        claim, lines = claimed
        some = lines[: self.chance.randrange(len(lines) + 1)]
        parts = [self.worker.store(claim, 0, some)] if some else []
        if self.chance.random() < 0.5:
            self.worker.link.release(claim, parts, outcome="stopped")
        else:
            self.worker.link.extend(claim, parts)  # and is never heard of again

    def work(self) -> None:
        self.worker.failing = set(self.chance.sample(range(9), self.chance.choice([0, 0, 3])))
        self.worker.work()

    def assemble(self) -> None:
        while self.service.assemble():
            pass

    def cancel(self) -> None:
        if known := [*self.ids, *self.files]:
            self.tolerated(lambda: self.service.client.cancel(self.chance.choice(known)))

    def retry(self) -> None:
        if not (known := [*self.ids, *self.files]):
            return
        before = self.chance.choice(known)
        again = self.tolerated(lambda: self.service.client.retry(before))
        if again is not None:
            of = self.files if before in self.files else self.ids
            of[again.id] = of[before]  # type: ignore[assignment]

    def clean(self) -> None:
        self.check()
        self.pass_time(self.chance.choice([0.05, 0.3, 1.1, 2, 10, 31, 45]))

    def wait_long_for_a_plan(self) -> None:
        """A batch is cancelled in the middle, submitted again much later, and planned much later still."""
        self.new_table()
        name = list(self.tables)[-1]
        self.finish_planning()
        self.some_work()
        self.tolerated(lambda: self.service.client.cancel([one for one in self.ids if self.ids[one] == name][-1]))
        self.pass_time(1.1)
        self.assemble()
        self.submit(name)
        self.pass_time(45)

    def finish_planning(self) -> None:
        while self.service.plan():
            pass

    def pass_time(self, days: float) -> None:
        answers, before = self.answers(), self.gone_on_from()
        self.house.later(days)
        self.check_kept(answers, before)
        self.service.state.life.expire_due()
        self.service.state.life.settle_ending()
        self.check()

    def records(self) -> list[Any]:
        with self.service.state.database.reading() as connection:
            return [row._asdict() for row in connection.execute(select(batches))]

    def answers(self) -> dict[str, list[int]]:
        """The rows whose answers each batch has that a retry could go on from."""
        context = DutyContext.open(self.service.settings)
        found = {}
        for record in self.records():
            if record["plan_key"] is not None and record["bytes_dropped_at"] is None and not record["dry_run"]:
                stored = stored_results(context.storage, record["plan_key"], context.parts(record))
                found[record["id"]] = sorted(answer.row for some in stored for answer in some)
        return found

    def gone_on_from(self) -> dict[str, str | None]:
        """The batch that each one which is to be planned goes on from."""
        life = self.service.state.life
        waiting = [record for record in self.records() if record["status"] == "validating"]
        return {record["id"]: (life.generation_before(record) or {}).get("id") for record in waiting}

    def check_kept(self, answers: dict[str, list[int]], before: dict[str, str | None]) -> None:
        """No answer has gone that something needs, or that is younger than what is kept."""
        assert self.gone_on_from() == before
        now = self.answers()
        assert now == {batch: answers[batch] for batch in now}
        records = {record["id"]: record for record in self.records()}
        for gone in answers.keys() - now.keys():
            if gone in records:
                ended = [records[gone][f"{status}_at"] for status in ("completed", "failed", "expired", "cancelled")]
                assert self.house.now - max(filter(None, ended)) >= 30 * DAY

    def tolerated(self, call: Any) -> Any:
        try:
            return call()
        except (ConflictError, NotFoundError) as error:
            if error.code not in REFUSALS | {"batch_not_found"}:
                raise
            return None

    def finish(self) -> None:
        """Everything that lives comes to its end."""
        self.house.now += DAY / 100  # past the leases of workers that were never heard of again
        for _ in range(100):
            self.service.state.life.settle_ending()
            self.worker.failing = ()
            if not any([self.service.plan(), self.worker.work(), self.service.assemble()]):
                return
            self.house.now += 1
        raise AssertionError("Something never ends.")

    def check(self) -> None:
        """Every batch that ended, and whose results have not expired, gives each of its rows, once, in order."""
        with self.service.state.database.reading() as connection:
            troubled = connection.exec_driver_sql("SELECT id, status, trouble FROM batches WHERE trouble LIKE '%met%'")
            assert list(troubled) == []
        for batch_id in [*self.ids, *self.files]:
            batch = self.tolerated(lambda one=batch_id: self.service.client.get(one))
            if batch is None or not batch.status.ended or batch.errors is not None:
                continue
            self.done.add(batch_id)
            try:
                rows = list(self.service.client.results(batch_id))
            except NotFoundError as error:
                if error.code not in ("results_expired", "target_gone", "file_not_found"):
                    raise
                continue
            if batch.dataset is not None and batch.manifest is not None:
                assert [row["text"] for row in rows] == self.tables[self.ids[batch_id]]
                assert all((row["llm_output"] is not None) == (row["llm_status"] == "success") for row in rows)
                assert sum(batch.manifest.counts.values()) == len(rows)
            elif batch.input_file_id is not None and (batch.output_file_id or batch.error_file_id):
                assert [row["custom_id"] for row in rows] == [f"row-{number}" for number in range(len(rows))]
                assert len(rows) == self.files[batch_id]


@pytest.mark.parametrize("seed", range(2))
def test_the_cleaner_deletes_nothing_that_anything_needs(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    house = House(service)
    house.now = time.time()
    now = lambda _: bindparam(None, callable_=lambda: house.now, type_=Double(), unique=True)  # noqa: E731
    monkeypatch.setattr(Database, "now", now)
    monkeypatch.setattr(service.state.chunks, "_claimable", ClaimableChunks(service.state.database.now()))
    monkeypatch.setattr(duties, "ENDING_SECONDS", 0.0)
    worker = AnsweringWorker(service, engine_identity="e", part_rows=2)
    with openai_client(service) as client:
        chaos = Chaos(service, client, random.Random(seed), house, worker)
        for _ in range(STEPS):
            chaos.step()
        chaos.finish()
        chaos.check()
        living = [batch for batch in (*chaos.ids, *chaos.files) if batch not in chaos.done]
        ended = [chaos.tolerated(lambda one=batch: service.client.get(one)) for batch in living]
        assert all(batch is None or batch.status.ended for batch in ended), ended
        assert len(chaos.done) > 3
        for days in (40, 400, 400):
            chaos.pass_time(days)
    assert house.stored() == []
