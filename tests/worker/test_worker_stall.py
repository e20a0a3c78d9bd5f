"""An engine that lives and never answers is replaced; one that is only slow is not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airflow_batch_llm.settings import EngineSettings
from airflow_batch_llm.worker import engine_watch
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.engine_watch import EngineWatch
from airflow_batch_llm.worker.stall import Stall, tokens_counted
from airflow_batch_llm.worker.vllm_process import VllmProcess
from tests.worker.conftest import soon
from tests.worker.fake_engine import FakeEngine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("looks", "still"),
    [
        ([(1, 0, 0.0), (1, 0, 0.0)], True),
        ([(1, 0, 0.0), (1, 0, 5.0)], False),  # a long row: its tokens come
        ([(2, 0, 5.0), (1, 1, 5.0)], False),  # an answer came
        ([(1, 0, 5.0), (0, 0, 5.0)], False),  # it has nothing to do
        ([(0, 3, 5.0), (0, 3, 5.0)], False),
        ([(0, 3, 5.0), (1, 3, 5.0)], True),
    ],
)
def test_an_engine_stands_still_that_has_rows_and_shows_neither_answer_nor_token(
    looks: list[tuple[int, int, float]], *, still: bool
) -> None:
    clock = Clock()
    stall = Stall(60.0, clock)
    for in_flight, answered, tokens in looks:
        judged = stall.stands_still(in_flight=in_flight, answered=answered, tokens=tokens)
        assert judged == (still and clock.now > 0)
        clock.now += 61.0


def test_a_new_engine_begins_anew() -> None:
    clock = Clock()
    stall = Stall(60.0, clock)
    stall.stands_still(in_flight=1, answered=0, tokens=0.0)
    clock.now = 61.0
    stall.started()
    assert not stall.stands_still(in_flight=1, answered=0, tokens=0.0)


def test_tokens_are_read_as_vllm_writes_them() -> None:
    metrics = (
        b"# HELP vllm:prompt_tokens_total Number of prefill tokens processed.\n"
        b"# TYPE vllm:prompt_tokens_total counter\n"
        b'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1.5e+03\n'
        b'vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7e+09\n'
        b'vllm:generation_tokens_total{engine="0",model_name="tiny"} 40.0\n'
    )
    assert tokens_counted(metrics) == 1540.0
    assert tokens_counted(b"python_gc_objects_collected_total 1.0\n") is None


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FakeEngine, EngineWatch]]:
    """A process that lives, and a server that is taken for what it serves."""
    monkeypatch.setattr(engine_watch, "LOOK_SECONDS", 0.02)
    settings = EngineSettings(
        model="m", served_model_name="fake", command=(sys.executable, "-c", "import time; time.sleep(60)")
    )
    process = VllmProcess(settings, tmp_path / "engine.sock", tmp_path / "engine.log")
    async with FakeEngine() as fake, Engine(model="fake", base_url=fake.url) as engine:
        watch = EngineWatch(process, Stall(0.4), load=lambda: (1, 0))
        await watch.start(engine)
        try:
            yield fake, watch
        finally:
            watch.stop()


async def test_an_engine_that_hangs_is_started_again_and_its_rows_are_given_back(
    watched: tuple[FakeEngine, EngineWatch],
) -> None:
    _, watch = watched
    deaths: list[int] = []
    assert watch.process is not None
    running = asyncio.create_task(watch.run(lambda: deaths.append(1)))
    await soon(lambda: deaths, what="the engine is given up")
    await soon(watch.up.is_set)
    running.cancel()


@pytest.mark.parametrize("tokens", ["rise", "not counted"])
async def test_an_engine_that_is_slow_or_counts_nothing_is_left_alone(
    watched: tuple[FakeEngine, EngineWatch], tokens: str
) -> None:
    fake, watch = watched
    fake.tokens = None if tokens == "not counted" else 0
    deaths: list[int] = []
    running = asyncio.create_task(watch.run(lambda: deaths.append(1)))
    for _ in range(50):
        await asyncio.sleep(0.02)
        if fake.tokens is not None:
            fake.tokens += 1
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert deaths == []
