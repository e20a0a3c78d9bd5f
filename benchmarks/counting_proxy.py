"""A proxy on loopback that counts the HTTP requests which go through it, and how many are in flight."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field


@dataclass
class CountingProxy:
    """Hands everything on to ``target``, a port. A request is in flight from its first byte to its answer's first."""

    target: int
    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    request_bytes: int = 0
    port: int = field(default=0, init=False)

    def start(self) -> None:
        ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True).start()
        ready.wait()

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self.target)
        asking = False

        def asked(data: bytes) -> None:
            nonlocal asking
            self.request_bytes += len(data)
            if not asking:
                asking = True
                self.requests += 1
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)

        def answered(_: bytes) -> None:
            nonlocal asking
            self.in_flight -= asking
            asking = False

        async def hand_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seen: object) -> None:
            while data := await source.read(1 << 18):
                seen(data)  # type: ignore[operator]
                sink.write(data)
                await sink.drain()

        ways = [asyncio.ensure_future(hand_on(*way)) for way in ((reader, onwards, asked), (there, writer, answered))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered(b"")
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for stream in (writer, onwards):
                with contextlib.suppress(OSError):
                    stream.close()
