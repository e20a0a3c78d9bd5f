"""Runs triggers on one event loop as a triggerer does, without Airflow's part of it.

    python benchmarks/trigger_loop.py TRIGGERS EVENTS

TRIGGERS is a file with a JSON list of triggers, each ``[classpath, arguments]``. EVENTS gets a line for each event: the
place of its trigger in the list, and the time (seconds since 1970).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TextIO

from airflow.sdk.module_loading import import_string


async def run(path: str, arguments: dict[str, object], number: int, events: TextIO) -> None:
    async for _ in import_string(path)(**arguments).run():
        events.write(f"{number} {time.time()}\n")
        events.flush()


async def main(triggers: list[tuple[str, dict[str, object]]], events: Path) -> None:
    with events.open("w") as stream:
        await asyncio.gather(*(run(*trigger, number, stream) for number, trigger in enumerate(triggers)))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
