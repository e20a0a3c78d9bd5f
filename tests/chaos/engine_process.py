"""The fake engine as a process that notes each row that it is asked in a file, so that the note outlives it."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.worker.fake_engine import FakeEngine


@dataclass
class NotingEngine(FakeEngine):
    """Writes the id of each request into ``notes`` before it is answered."""

    notes: Any = field(default=None)

    async def _completion(self, request: web.Request) -> web.Response:
        self.notes.write(request.headers["X-Request-Id"] + "\n")
        self.notes.flush()
        return await super()._completion(request)


async def _run(port: int, notes: Path, delay: float) -> None:
    with notes.open("a") as stream:
        async with NotingEngine(port=port, delay=delay, remembers=False, notes=stream):
            await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds that each answer takes")
    given = parser.parse_args()
    asyncio.run(_run(given.port, given.notes, given.delay))
