"""Waiting on behalf of a client, for as long as it is there."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio
from fastapi import Request

_Result = TypeVar("_Result")


async def while_connected(request: Request, waiting: Awaitable[_Result]) -> _Result | None:
    """What is waited for; None where the client has hung up meanwhile, and then the waiting is over too."""
    result: _Result | None = None
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(listen)
        result = await waiting
        group.cancel_scope.cancel()
    return result
