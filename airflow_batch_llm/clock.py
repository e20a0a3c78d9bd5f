"""The time as this process knows it; leases run on the store's clock, never on this one."""

from __future__ import annotations

from datetime import datetime

import pendulum


def now() -> datetime:
    """The current time, aware, in UTC."""
    return pendulum.now("UTC")


def from_unix(seconds: float) -> datetime:
    """The moment that lies ``seconds`` after 1970 began, aware, in UTC."""
    return pendulum.from_timestamp(seconds)
