"""A wait that ends when the client hangs up who waits for its answer."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio
from starlette.requests import Request


async def while_connected(request: Request, waiting: Awaitable[None]) -> bool:
    """Waits, but not for a client that has hung up; gives whether it is there still."""
    there = True
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            nonlocal there
            while (await request.receive())["type"] != "http.disconnect":
                pass
            there = False
            group.cancel_scope.cancel()

        group.start_soon(listen)
        await waiting
        group.cancel_scope.cancel()
    return there
