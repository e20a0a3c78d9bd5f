"""Tells the webhooks that a batch has ended, in OpenAI's words and signed as Standard Webhooks has it.

At least once: a receiver that took an event may get it again (the service died before it wrote that down, or another
webhook did not take it), always with the same ``webhook-id``, by which it can drop the double.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
from standardwebhooks import Webhook

from airflow_batch_llm import clock
from airflow_batch_llm.child_process import process_name
from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.models import DutyKind
from airflow_batch_llm.settings import ServiceSettings, WebhookSettings
from airflow_batch_llm.store.database import Database
from airflow_batch_llm.store.duties import Duties, Duty, DutyLostError
from airflow_batch_llm.store.life import BatchLife

log = logging.getLogger(__name__)

TRY_SECONDS: Final = 10.0
"""How long a receiver may take for each step of a request: to be reached, to read, to answer."""
LEASE_SECONDS: Final = 60.0
"""Longer than all steps of one request together; extended before each one."""
RETRY_SECONDS: Final = (5.0, 60.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
"""How long after the first, second … try that failed the next one comes; after the last one the event is given up."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 (what a secret begins with)
LEAST_SECRET_BYTES: Final = 24
"""Standard Webhooks asks for 192 bits, and a word that happens to be base64 has less."""


def check_webhooks(webhooks: Iterable[WebhookSettings]) -> None:
    """Raises :class:`InvalidRequestError` for a webhook that no event could be sent to, or signed for."""
    for number, webhook in enumerate(webhooks, start=1):
        if not _usable(webhook.url):
            raise InvalidRequestError(
                f"Webhook {number} has no usable URL: it must begin with http:// or https:// and name a host. "
                "The service was not started. Correct the URL.",
                code="invalid_webhook",
                param="webhooks.url",
            )
        if len(_secret_bytes(webhook.secret)) < LEAST_SECRET_BYTES:
            raise InvalidRequestError(
                f"Webhook {number} ({_place(webhook)}) has no usable secret: it must be {SECRET_PREFIX!r} and then at "
                f"least {LEAST_SECRET_BYTES} bytes in base64. The service was not started. Take the one that the "
                f"receiver gave you, or make one: echo {SECRET_PREFIX}$(openssl rand -base64 32)",
                code="invalid_webhook",
                param="webhooks.secret",
            )


def event_id(batch_id: str) -> str:
    """The id of the event that a batch has ended: a batch ends once, so the same for every try."""
    return f"evt_{batch_id.removeprefix('batch_')}"


def end_event(batch: Mapping[str, Any]) -> bytes:
    """OpenAI's event for a batch that has ended; the same bytes for every try."""
    event = {
        "id": event_id(batch["id"]),
        "object": "event",
        "type": f"batch.{batch['status']}",
        "created_at": int(batch[f"{batch['status']}_at"]),
        "data": {"id": batch["id"]},
    }
    return json.dumps(event).encode()


@dataclass
class Notifier:
    """Does the NOTIFY duties, one batch at a time: every webhook is told, or all of them again later."""

    holder: str
    webhooks: tuple[WebhookSettings, ...]
    database: Database
    http: httpx.Client

    @classmethod
    def open(cls, settings: ServiceSettings) -> Notifier:
        """A notifier of this process, with connections of its own; close it after use."""
        return cls(
            holder=process_name(),
            webhooks=settings.webhooks,
            database=Database(settings.store_url),
            http=httpx.Client(timeout=TRY_SECONDS),
        )

    def __post_init__(self) -> None:
        self._duties = Duties(self.database)
        self._life = BatchLife(self.database)

    def close(self) -> None:
        self.http.close()
        self.database.close()

    def run_once(self) -> bool:
        """Tells of the next batch whose end is to be told, if there is one; gives whether there was."""
        if not self._duties.due(DutyKind.NOTIFY):
            return False
        duty = self._duties.claim(DutyKind.NOTIFY, holder=self.holder, lease_seconds=LEASE_SECONDS)
        if duty is None:
            return False
        try:
            self._tell(duty)
        except DutyLostError:
            log.warning("lost notify of %s in attempt %d: another process tells it", duty.batch_id, duty.attempt)
        return True

    def _tell(self, duty: Duty) -> None:
        batch = self._life.for_duty(duty)
        troubles = []
        for webhook in self.webhooks:
            self._duties.extend(duty, lease_seconds=LEASE_SECONDS)
            trouble = self._send(webhook, batch)
            if trouble is not None:
                troubles.append(f"{_place(webhook)}: {trouble}")
        if not troubles:
            self._end(duty)
        elif duty.attempt > len(RETRY_SECONDS):
            self._end(duty)
            log.error("gave up notify of %s after %d tries (%s)", duty.batch_id, duty.attempt, "; ".join(troubles))
        else:
            self._put_off(duty, "; ".join(troubles))

    def _send(self, webhook: WebhookSettings, batch: Mapping[str, Any]) -> str | None:
        """One POST; gives what went wrong, None where the event is delivered or nobody wants it any more."""
        content = end_event(batch)
        url = httpx.URL(webhook.url)
        bare = url.copy_with(username=None, password=None)  # httpx and its errors may say the URL
        try:
            with self.http.stream(
                "POST",
                bare,
                content=content,
                headers=_signed(webhook, batch, content),
                auth=_credentials(url),
                follow_redirects=False,  # an event goes to the configured address alone
            ) as response:
                status = response.status_code  # the body is nobody's business, and may have no end
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if status == httpx.codes.GONE:
            log.warning("%s wants no more events (HTTP 410): %s was not told", _place(webhook), batch["id"])
            return None
        return None if 200 <= status < 300 else f"it answered HTTP {status}"

    def _end(self, duty: Duty) -> None:
        self._duties.end(duty)
        if self.webhooks:
            log.info("ended notify of %s", duty.batch_id)

    def _put_off(self, duty: Duty, trouble: str) -> None:
        seconds = RETRY_SECONDS[duty.attempt - 1]
        self._duties.put_off(duty, seconds=seconds)
        log.warning("put off notify of %s by %.0f s: %s", duty.batch_id, seconds, trouble)


def _signed(webhook: WebhookSettings, batch: Mapping[str, Any], content: bytes) -> dict[str, str]:
    now = clock.now()
    name = event_id(batch["id"])
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(webhook.secret).sign(name, now, content.decode()),
    }


def _credentials(url: httpx.URL) -> tuple[str, str] | None:
    return (url.username, url.password) if url.userinfo else None


def _usable(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _secret_bytes(secret: str) -> bytes:
    """What a secret stands for; nothing where it is not ``whsec_`` and base64 to the letter."""
    if not secret.startswith(SECRET_PREFIX):
        return b""
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return b""


def _place(webhook: WebhookSettings) -> str:
    """What may be logged of a webhook: its path and query can hold a token as well as its credentials do."""
    url = httpx.URL(webhook.url)
    return f"{url.scheme}://{url.netloc.decode()}"
