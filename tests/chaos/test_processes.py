"""A few kills of real processes in every run of the tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.fault_proxy import CUT_AFTER, Fault, FaultProxy
from tests.chaos.processes import run

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100


@pytest.mark.parametrize("seed", [1])
def test_no_row_is_lost_and_none_is_doubled_by_real_processes_that_are_killed(seed: int) -> None:
    schedule, broken = run(seed, "fake", events=3, rows=120)
    assert not broken, "\n".join([*schedule.log, *broken])


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that gives the same answer to whatever comes."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("fault", "heard"),
    [("none", len(ANSWER)), ("refuse", 0), ("drop", 0), ("delay", len(ANSWER)), ("cut", CUT_AFTER)],
)
def test_the_proxy_passes_on_as_much_as_its_fault_lets_through(echo: int, fault: Fault, heard: int) -> None:
    with FaultProxy(echo) as proxy:
        proxy.fault = fault
        with socket.create_connection(("127.0.0.1", proxy.port)) as caller:
            caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert len(_all(caller)) == heard


def _all(caller: socket.socket) -> bytes:
    found = b""
    try:
        while block := caller.recv(1 << 16):
            found += block
    except ConnectionError:
        pass
    return found
