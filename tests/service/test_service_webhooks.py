"""Webhooks: every end of a batch is told, signed, and told again until somebody takes it."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import BatchStatus, DutyKind
from airflow_batch_llm.service import supervisor
from airflow_batch_llm.service.notifier import LEASE_SECONDS, RETRY_SECONDS, Notifier, check_webhooks
from airflow_batch_llm.settings import ServiceSettings, WebhookSettings
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties
from airflow_batch_llm.store.watching import Watching
from tests.conftest import eventually
from tests.store.test_store_chunks import TEAM, Store, store

__all__ = ["store"]

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass
class Receiver:
    """A little HTTP server that keeps what it was sent; it answers ``answers`` first, then 204."""

    answers: list[int] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)
    url: str = ""
    hold: threading.Event | None = None

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers in self.headers]

    def answer(self, headers: dict[str, str], body: str) -> int:
        self.headers.append(headers)
        self.bodies.append(body)
        if self.hold is not None:
            self.hold.wait(20)
        return self.answers.pop(0) if self.answers else 204


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.answer(headers, body))
            self.send_header("location", f"{receiver.url}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=5.0, follow_redirects=True) as client:
        yield client


@pytest.fixture
def notifier(store: Store, receiver: Receiver, http: httpx.Client) -> Notifier:
    return Notifier("here", (WebhookSettings(url=receiver.url, secret=SECRET),), store.database, http)


def failed(store: Store) -> str:
    batch_id = store.submit()
    duty = store.duties.claim(DutyKind.PLAN, holder="h", lease_seconds=10)
    assert duty is not None
    store.life.fail(duty, [{"code": "x", "message": "y"}])
    return batch_id


def cancelled(store: Store) -> str:
    batch_id = store.submit()
    store.batches.cancel(TEAM, batch_id)
    return batch_id


def finished(store: Store, status: BatchStatus, trouble: str | None = None) -> str:
    batch_id = store.planned(chunks=0)
    if status == BatchStatus.CANCELLED:
        batch_id = store.planned()
        store.batches.cancel(TEAM, batch_id)
    duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=10)
    while duty is not None and duty.batch_id != batch_id:
        duty = store.duties.claim(DutyKind.ASSEMBLE, holder="h", lease_seconds=10)
    assert duty is not None
    store.life.finish(duty, status, trouble=trouble)
    return batch_id


def unwrapped(receiver: Receiver, number: int = -1) -> Any:
    """The event as OpenAI's own client takes it; raises where the signature is not right."""
    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9")
    return client.webhooks.unwrap(receiver.bodies[number], receiver.headers[number], secret=SECRET)


def test_every_end_of_a_batch_is_told_as_openai_tells_it(store: Store, notifier: Notifier, receiver: Receiver) -> None:
    ended = {
        "failed": failed(store),
        "cancelled": cancelled(store),
        "completed": finished(store, BatchStatus.COMPLETED),
        "expired": finished(store, BatchStatus.EXPIRED),
    }
    while notifier.run_once():
        pass
    assert len(receiver.bodies) == len(ended)
    told = {event.type: event for event in (unwrapped(receiver, number) for number in range(len(ended)))}
    for status, batch_id in ended.items():
        event = told[f"batch.{status}"]
        assert (event.data.id, event.object, event.created_at) == (batch_id, "event", 1000)
        assert event.id == batch_id.replace("batch_", "evt_")
    assert {frozenset(json.loads(body)) for body in receiver.bodies} == {
        frozenset({"id", "object", "type", "created_at", "data"})
    }


def test_an_event_carries_a_signature_that_only_its_own_bytes_have(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    failed(store)
    notifier.run_once()
    body, headers = receiver.bodies[0], receiver.headers[0]
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace("failed", "completed"), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        openai.OpenAI(api_key="x").webhooks.unwrap(body.replace("failed", "completed"), headers, secret=SECRET)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(bytes(32)).decode()).verify(body, headers)


def test_an_event_is_told_again_until_it_is_taken_under_one_id(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    receiver.answers = [500, 307]
    failed(store)
    for number, seconds in enumerate(RETRY_SECONDS[:2], start=1):
        assert notifier.run_once()
        assert len(receiver.bodies) == number
        store.now += seconds - 1
        assert not notifier.run_once()
        store.now += 2
    assert notifier.run_once()
    assert len(receiver.bodies) == 3  # a redirect is not followed
    assert len(set(receiver.ids)) == len(set(receiver.bodies)) == 1
    unwrapped(receiver)
    store.now += 100_000
    assert not notifier.run_once()


def test_an_event_that_nobody_takes_is_given_up_with_a_word(
    store: Store, notifier: Notifier, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    batch_id = failed(store)
    receiver.answers = [500] * 20
    tries = 0
    while notifier.run_once():
        tries += 1
        store.now += RETRY_SECONDS[-1] + 1
    assert tries == len(receiver.bodies) == len(RETRY_SECONDS) + 1
    assert f"gave up notify of {batch_id}" in caplog.text


def test_a_webhook_that_is_gone_is_not_asked_again(store: Store, notifier: Notifier, receiver: Receiver) -> None:
    receiver.answers = [410]
    failed(store)
    assert notifier.run_once()
    store.now += 100_000
    assert not notifier.run_once()
    assert len(receiver.bodies) == 1


def test_without_webhooks_nothing_waits_to_be_told(store: Store, notifier: Notifier) -> None:
    failed(store)
    assert dataclasses.replace(notifier, webhooks=()).run_once()
    store.now += 100_000
    assert not notifier.run_once()


def test_one_webhook_in_trouble_does_not_keep_an_event_from_the_other(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    away = WebhookSettings(url="http://127.0.0.1:1/", secret=SECRET)
    both = dataclasses.replace(notifier, webhooks=(away, *notifier.webhooks))
    failed(store)
    assert both.run_once()
    assert len(receiver.bodies) == 1
    store.now += RETRY_SECONDS[0] + 1
    assert both.run_once()
    assert len(set(receiver.ids)) == 1


def test_trouble_with_a_webhook_leaves_the_batch_as_it_ended(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    receiver.answers = [500]
    batch_id = finished(store, BatchStatus.CANCELLED, trouble="No target was written: it was full.")
    before = store.batches.get(TEAM, batch_id)
    while notifier.run_once():
        pass
    assert store.batches.get(TEAM, batch_id) == before


def test_an_event_that_a_dead_process_was_at_is_told_after_its_lease(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    failed(store)
    assert store.duties.claim(DutyKind.NOTIFY, holder="dead", lease_seconds=LEASE_SECONDS)
    assert not notifier.run_once()
    store.now += LEASE_SECONDS + 1
    assert notifier.run_once()
    assert len(receiver.bodies) == 1


def test_two_notifiers_never_tell_one_event_at_once(store: Store, notifier: Notifier, receiver: Receiver) -> None:
    receiver.hold = threading.Event()
    failed(store)
    first = threading.Thread(target=notifier.run_once)
    first.start()
    eventually(lambda: receiver.bodies, what="the first one is at it")
    assert not dataclasses.replace(notifier, holder="there").run_once()
    receiver.hold.set()
    first.join()
    assert len(receiver.bodies) == 1


def test_a_notifier_that_lost_its_duty_leaves_it_to_the_other(
    store: Store, notifier: Notifier, receiver: Receiver
) -> None:
    receiver.hold = threading.Event()
    receiver.answers = [204, 500]
    failed(store)
    worked: list[bool] = []
    first = threading.Thread(target=lambda: worked.append(notifier.run_once()))
    first.start()
    eventually(lambda: receiver.bodies, what="the first one is at it")
    store.now += LEASE_SECONDS + 1
    other = store.duties.claim(DutyKind.NOTIFY, holder="there", lease_seconds=LEASE_SECONDS)
    receiver.hold.set()
    first.join()
    assert worked == [True]
    assert other is not None
    store.duties.extend(other, lease_seconds=LEASE_SECONDS)  # it is the other one's still, and not done


def test_neither_secret_nor_credentials_nor_path_of_a_webhook_are_logged(
    store: Store, notifier: Notifier, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = receiver.url.removeprefix("http://")
    webhooks = tuple(
        WebhookSettings(url=f"http://name:hidden1@{place}/hidden2?hidden3", secret=SECRET)
        for place in (host, "127.0.0.1:1")
    )
    receiver.answers = [500, 410]
    failed(store)
    for _ in range(2):
        assert dataclasses.replace(notifier, webhooks=webhooks).run_once()
        store.now += RETRY_SECONDS[0] + 1
    assert receiver.headers[0]["authorization"].startswith("Basic ")
    assert "put off notify" in caplog.text
    assert "hidden1" not in caplog.text
    assert SECRET not in caplog.text
    assert "hidden" not in "".join(message for name, _, message in caplog.record_tuples if "airflow" in name)


@pytest.mark.parametrize(
    ("url", "secret", "param"),
    [
        ("ftp://example.org", SECRET, "webhooks.url"),
        ("example.org/hook", SECRET, "webhooks.url"),
        ("http://", SECRET, "webhooks.url"),
        ("http://example.org:port", SECRET, "webhooks.url"),
        ("https://name:hidden@example.org/hidden", SECRET.replace("A", "A!"), "webhooks.secret"),
        ("https://name:hidden@example.org/hidden", SECRET.removeprefix("whsec_"), "webhooks.secret"),
        ("https://name:hidden@example.org/hidden", "whsec_hiddenpassword12", "webhooks.secret"),
        ("https://name:hidden@example.org/hidden", "whsec_", "webhooks.secret"),
        ("https://name:hidden@example.org/hidden", "whsec_hiddén", "webhooks.secret"),
    ],
)
def test_a_webhook_that_cannot_be_used_is_said_at_the_start(url: str, secret: str, param: str) -> None:
    good = WebhookSettings(url="https://example.org/hook", secret=SECRET)
    check_webhooks([good])
    with pytest.raises(InvalidRequestError, match=r"Webhook 2 .*The service was not started") as refused:
        check_webhooks([good, WebhookSettings(url=url, secret=secret)])
    assert refused.value.param == param
    assert "hidd" not in refused.value.message


def test_the_service_tells_whatever_breaks_off(
    settings: ServiceSettings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_PROCESSES", ())
    monkeypatch.setattr(supervisor, "NOTIFY_SECONDS", 0.01)
    run_once, broken = Notifier.run_once, [True, True]

    def breaking(notifier: Notifier) -> bool:
        if broken and broken.pop():
            raise RuntimeError("no")
        return run_once(notifier)

    monkeypatch.setattr(Notifier, "run_once", breaking)
    settings = dataclasses.replace(settings, webhooks=(WebhookSettings(url=receiver.url, secret=SECRET),))
    standing = Store(settings.store_url)
    standing.database = Database(settings.store_url)
    batch_id = failed(standing)
    keeper = supervisor.Supervisor(settings, Duties(standing.database), standing.life, Watching(standing.database))
    keeper.start()
    eventually(lambda: receiver.bodies, what="the webhook is told")
    keeper.stop()
    standing.database.close()
    assert unwrapped(receiver).data.id == batch_id
    assert "a notify duty broke off" in caplog.text


def test_a_service_that_ended_while_a_webhook_was_silent_tells_it_again_at_once_when_it_is_back(
    settings: ServiceSettings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PROCESSES", ())
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.1)
    receiver.hold = threading.Event()
    settings = dataclasses.replace(settings, webhooks=(WebhookSettings(url=receiver.url, secret=SECRET),))
    standing = Store(settings.store_url)
    standing.database = Database(settings.store_url)
    failed(standing)
    for told in (1, 2):
        keeper = supervisor.Supervisor(settings, Duties(standing.database), standing.life, Watching(standing.database))
        keeper.start()
        eventually(lambda told=told: len(receiver.bodies) == told, seconds=5, what="the webhook is told")
        keeper.stop()
    receiver.hold.set()
    eventually(lambda: not Duties(standing.database).holders(), what="the last one has written it down")
    standing.database.close()
    assert len(set(receiver.ids)) == 1
