"""A TCP proxy that a test makes worse than any network: it refuses, drops, delays, cuts answers in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Final, Literal, Self

Fault = Literal["none", "refuse", "drop", "delay", "cut"]
FAULTS: Final[tuple[Fault, ...]] = ("refuse", "drop", "delay", "cut")

DELAY_SECONDS: Final = 1.0
CUT_AFTER: Final = 40
"""Bytes of an answer that still come through: a part of its head."""


class FaultProxy:
    """Passes connections on to a port of this machine, from a thread of its own. ``fault`` says how well.

    ``refuse`` closes what comes, ``drop`` does so in the moment an answer begins (the call took effect, nobody hears
    of it), ``delay`` holds each answer back, and ``cut`` ends it after its first bytes.
    """

    def __init__(self, port: int) -> None:
        self.to_port = port
        self.fault: Fault = "none"
        self.port = 0
        self.met = 0
        """How many connections met a fault."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connections are kept alive for many calls, so a fault is looked for in each block and not at their start."""
        upward: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError):
            if self.fault != "refuse":
                answers, upward = await asyncio.open_connection("127.0.0.1", self.to_port)
                await asyncio.wait(
                    {
                        asyncio.create_task(self._pass_on(reader, upward, is_answer=False)),
                        asyncio.create_task(self._pass_on(answers, writer, is_answer=True)),
                    },
                    return_when=asyncio.FIRST_COMPLETED,
                )
        for end in (writer, upward):
            if end is not None:
                end.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while block := await source.read(1 << 16):
                fault = self.fault
                self.met += fault != "none"
                if fault == "refuse" or (fault == "drop" and is_answer):
                    return
                if is_answer and fault == "delay":
                    await asyncio.sleep(DELAY_SECONDS)
                if is_answer and fault == "cut":
                    sink.write(block[:CUT_AFTER])
                    await sink.drain()
                    return
                sink.write(block)
                await sink.drain()
