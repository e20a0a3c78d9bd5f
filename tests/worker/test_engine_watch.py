"""Whether a supervised engine lives: any exit that nobody asked for is a death, and a 500 alone is none."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airflow_batch_llm.errors import EngineStartError
from airflow_batch_llm.settings import EngineSettings
from airflow_batch_llm.worker import engine_watch
from airflow_batch_llm.worker.engine import Engine
from airflow_batch_llm.worker.engine_watch import EngineWatch
from airflow_batch_llm.worker.vllm_process import VllmProcess
from tests.worker.conftest import soon
from tests.worker.fake_engine import FakeEngine

LIVES = "import time; time.sleep(60)"


def _process(folder: Path, code: str) -> VllmProcess:
    """A process that runs ``code`` where `vllm serve` would be."""
    settings = EngineSettings(model="m", served_model_name="fake", command=(sys.executable, "-c", code))
    return VllmProcess(settings, folder / "engine.sock", folder / "engine.log")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(engine_watch, "DYING_SECONDS", 0.2)


@pytest.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as fake:
        yield fake


@pytest.fixture
async def engine(fake: FakeEngine) -> AsyncIterator[Engine]:
    async with Engine(model="fake", base_url=fake.url) as engine:
        yield engine


async def test_a_living_engine_that_failed_on_a_row_is_not_dead(tmp_path: Path, engine: Engine) -> None:
    watch = EngineWatch(_process(tmp_path, LIVES))
    await watch.start(engine)
    try:
        assert not await watch.died()
        assert watch.up.is_set()
    finally:
        watch.stop()


@pytest.mark.parametrize("code", [0, 1])
async def test_an_engine_that_ended_is_dead_whatever_its_code_and_gets_no_more_rows(
    tmp_path: Path, engine: Engine, code: int
) -> None:
    watch = EngineWatch(_process(tmp_path, f"raise SystemExit({code})"))
    await watch.start(engine)
    try:
        assert await watch.died()
        assert not watch.up.is_set()
    finally:
        watch.stop()


async def test_an_engine_that_lives_and_does_not_answer_is_dead(
    tmp_path: Path, engine: Engine, fake: FakeEngine
) -> None:
    watch = EngineWatch(_process(tmp_path, LIVES))
    await watch.start(engine)
    try:
        fake.healthy = False
        assert await watch.died()
        assert not watch.up.is_set()
    finally:
        watch.stop()


@pytest.mark.parametrize("ending", [True, False])
async def test_an_engine_that_ends_is_started_again_unless_its_worker_ends_too(
    tmp_path: Path, engine: Engine, *, ending: bool
) -> None:
    starts = tmp_path / "starts"
    process = _process(tmp_path, f"open({str(starts)!r}, 'a').write('x')")
    watch = EngineWatch(process)
    await watch.start(engine)
    await soon(lambda: process.exit_code() is not None)
    deaths: list[int] = []
    watch.ending = ending
    running = asyncio.create_task(watch.run(lambda: deaths.append(1)))
    try:
        await soon(running.done if ending else lambda: len(starts.read_text()) > 1)
        assert (starts.read_text() == "x") == ending
        assert deaths
    finally:
        running.cancel()
        await asyncio.wait({running})
        watch.stop()


@pytest.mark.parametrize("code", [0, 3])
async def test_an_engine_that_ends_before_it_is_ready_says_why(
    tmp_path: Path, engine: Engine, fake: FakeEngine, code: int
) -> None:
    fake.healthy = False
    watch = EngineWatch(_process(tmp_path, f"print('no such model'); raise SystemExit({code})"))
    with pytest.raises(EngineStartError, match=rf"(?s)ended with code {code} before it was ready.*no such model"):
        await watch.start(engine)


async def test_a_stale_socket_is_out_of_the_way_before_the_engine_starts(tmp_path: Path) -> None:
    process = _process(tmp_path, LIVES)
    process.socket.write_text("")
    process.start()
    try:
        assert not process.socket.exists()
        await soon(lambda: process.exit_code() is None)
    finally:
        process.stop()
    assert process.exit_code() is not None


@pytest.mark.parametrize("command", ["/nope/vllm", "/etc/passwd", "/tmp"])
async def test_a_command_that_is_none_is_told_as_an_engine_that_cannot_be_started(
    tmp_path: Path, engine: Engine, command: str
) -> None:
    settings = EngineSettings(model="m", served_model_name="fake", command=(command,))
    watch = EngineWatch(VllmProcess(settings, tmp_path / "engine.sock", tmp_path / "engine.log"))
    with pytest.raises(EngineStartError, match=rf"`{command} serve m` cannot be started: .* Look at the worker's"):
        await watch.start(engine)
    watch.stop()


def test_a_socket_whose_path_is_too_long_is_refused_with_both_lengths(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 110)
    with pytest.raises(EngineStartError, match=r"which has \d{3} bytes, and Linux takes at most 107"):
        _process(folder, LIVES).start()


OF_VLLM = """\
(APIServer pid=7) WARNING 11-29 21:47:09 [system_utils.py:255] This can cause fd limit errors like `OSError: no`.
(VllmWorker-0 pid=9) ERROR 11-29 21:48:40 [multiproc_executor.py:953] Traceback (most recent call last):
(VllmWorker-0 pid=9) ERROR 11-29 21:48:40 [multiproc_executor.py:953]     raise ValueError(
(VllmWorker-0 pid=9) ERROR 11-29 21:48:40 [multiproc_executor.py:953] ValueError: Available memory is too small.
(EngineCore pid=8) ERROR 11-29 21:48:41 [core.py:1] ValueError: Available memory is too small.
(EngineCore pid=8) INFO 11-29 21:48:42 [core.py:2] ending
Traceback (most recent call last):
"""
OF_ITS_PARENT = "RuntimeError: Engine core initialization failed. See root cause above."


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (
            OF_VLLM + "  File x\n" * 40 + OF_ITS_PARENT,
            ["The first errors in {log}:", "ValueError: Available memory is too small.", OF_ITS_PARENT],
        ),
        ("usage: vllm serve\nvllm serve: error: no --x", ["The first errors in {log}:", "vllm serve: error: no --x"]),
        ("hub.errors.RepoError: 404", ["The first errors in {log}:", "hub.errors.RepoError: 404"]),
        ("one\ntwo", ["The end of {log}:", "one", "two"]),
        ("", ["The end of {log}:", "(nothing)"]),
    ],
)
async def test_an_engine_that_does_not_come_up_is_told_with_what_was_wrong_first(
    tmp_path: Path, written: str, says: list[str]
) -> None:
    process = _process(tmp_path, f"import sys; sys.stdout.write({written!r}); sys.exit(1)")
    process.log_path.write_text("ImportError: of an earlier start\n")
    process.start()
    async with Engine(model="fake", socket=process.socket) as nowhere:
        with pytest.raises(EngineStartError) as told:
            await process.wait_ready(nowhere)
    first, *lines = str(told.value).splitlines()
    assert "ended with code 1 before it was ready. " in first
    assert [first.partition("ready. ")[2], *lines] == [line.format(log=process.log_path) for line in says]
