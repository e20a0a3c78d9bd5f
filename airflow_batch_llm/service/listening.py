"""The sockets that a service listens on, bound before anything else of it is opened."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_batch_llm.errors import InvalidRequestError


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """A socket for each address that ``host`` means; they refuse connections until somebody listens on them.

    Raises :class:`InvalidRequestError` where one cannot be had.
    """
    with contextlib.ExitStack() as held:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = [_bound(held, family, place) for family, _, _, _, place in dict.fromkeys(found)]
        except (OSError, UnicodeError) as error:
            raise InvalidRequestError(
                f"The service cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}. "
                "Nothing was started. If another program has the port, end that or give another --port; --host has to "
                "be an address of this machine.",
                code="cannot_listen",
            ) from error
        yield sockets


def address(sockets: list[socket.socket]) -> str:
    """The first of them as a URL, with the port that it really has."""
    host, port = sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(held: contextlib.ExitStack, family: int, place: tuple[object, ...]) -> socket.socket:
    opened = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
    opened.bind(place)
    return opened
