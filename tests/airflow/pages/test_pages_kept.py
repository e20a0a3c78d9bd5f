"""How long the pages know what a connection says without looking it up again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.models import Connection

from airflow_batch_llm.plugins.kept import Kept
from tests.airflow.pages.mounted import Pages, connect
from tests.airflow.pages.service_double import ServiceDouble

pytestmark = pytest.mark.airflow


class LookUps:
    """Counts them; what they find changes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.says = "old"

    def find(self, name: str) -> str:
        self.asked.append(name)
        if self.says == "nothing":
            raise LookupError(name)
        return f"{name}: {self.says}"

    def kept(self, **limits: Any) -> Kept[str]:
        return Kept(self.find, seconds=10.0, clock=lambda: self.now, **limits)


def test_what_was_found_is_kept_for_its_time_and_no_longer() -> None:
    look_ups = LookUps()
    kept = look_ups.kept()
    assert [kept.of("a"), kept.of("a")] == ["a: old"] * 2
    look_ups.says = "new"
    look_ups.now += 9.9
    assert kept.of("a") == "a: old"
    assert kept.of("b") == "b: new"
    look_ups.now += 0.1
    assert kept.of("a") == "a: new"
    assert look_ups.asked == ["a", "b", "a"]


def test_what_was_not_found_is_looked_for_again() -> None:
    look_ups = LookUps()
    kept = look_ups.kept()
    look_ups.says = "nothing"
    with pytest.raises(LookupError):
        kept.of("a")
    look_ups.says = "new"
    assert kept.of("a") == "a: new"


def test_no_more_is_kept_than_there_is_room_for() -> None:
    look_ups = LookUps()
    kept = look_ups.kept(most=2)
    for name in ("a", "b", "c", "c", "b", "a"):
        kept.of(name)
    assert look_ups.asked == ["a", "b", "c", "a"]


def test_a_slow_look_up_is_in_the_way_of_no_other() -> None:
    both_look = threading.Barrier(2)

    def look_up(name: str) -> str:
        both_look.wait(10)
        return name

    kept = Kept(look_up)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(kept.of, ["a", "b"])) == ["a", "b"]


def test_a_page_that_asks_often_does_not_look_up_its_connection_each_time(
    pages: Pages, double: ServiceDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    look_up = Connection.get_connection_from_secrets

    def counted(conn_id: str) -> Connection:
        asked.append(conn_id)
        return look_up(conn_id)

    monkeypatch.setattr(Connection, "get_connection_from_secrets", counted)
    with pages.as_("root") as browser:
        for _ in range(3):
            browser.get("/api/v1/whoami").raise_for_status()
            browser.post("/api/v1/batches/overview", json={}).raise_for_status()
            browser.get("/api/v1/batches/batch_reviews/rows").raise_for_status()
        assert asked == ["batch_llm_default"]
        changed = " ".join(("another", "token"))
        connect(monkeypatch, double.url, password=changed)
        browser.get("/api/v1/workers").raise_for_status()
    assert double.last("workers").headers["authorization"] == f"Bearer {changed}"
