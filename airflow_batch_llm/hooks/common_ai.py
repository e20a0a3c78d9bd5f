"""The pool as a batch provider of Airflow's own ``LLMBatchOperator`` and ``@task.llm_batch`` (provider common.ai).

With ``model_id="batch_llm:<model>"`` and a connection of type ``batch_llm`` they run on a service of ours. Nothing but
this module and ``common_ai_rows`` imports ``airflow.providers.common.ai``, which finds the adapter by its entry point.

Streams: a request is written out when it is made, and a result is read when it is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.providers.common.ai.batch.base import (
    BatchAdapter,
    BatchRequest,
    BatchState,
    ExtractedOutput,
    RawResultItem,
    SubmitResult,
)
from airflow.providers.common.ai.exceptions import LLMBatchLimitExceededError, LLMBatchModelMismatchError
from airflow.sdk import get_current_context

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError, NotFoundError
from airflow_batch_llm.hooks.airflow_names import conf
from airflow_batch_llm.hooks.common_ai_rows import Asked, request_line, result_item
from airflow_batch_llm.hooks.names import origin_of
from airflow_batch_llm.models import CHAT_COMPLETIONS, BatchStatus
from airflow_batch_llm.wire import Batch, BatchCreate, FileObject, Origin

if TYPE_CHECKING:
    from airflow.providers.common.ai.batch.output_schema import OutputSpec

CLOCK_SLACK: Final = timedelta(minutes=5)
"""How far the clocks of Airflow and the service may be apart."""
REMEDY: Final = "Split the input with .expand(), so that each mapped task submits less of it."


class NoSuchBatchError(NotFoundError):
    """The service does not know the batch; ``status_code`` tells common.ai's operator so, which then resubmits."""

    status_code: Final = 404


class PoolBatchAdapter(BatchAdapter):
    """Runs the batches of common.ai on a pool of this package.

    The same input of the same task instance is one batch: a second submit finds the first one, and starts anew only
    where that failed, expired or was cancelled. Needs a service with its extensions, because that rests on keys.
    """

    name: ClassVar[str] = "batch_llm"
    conn_types: ClassVar[frozenset[str]] = frozenset({"batch_llm"})
    max_requests: ClassVar[int] = 5_000_000
    """The operator holds all prompts in memory; the service itself would take more."""
    max_payload_bytes: ClassVar[int] = 20_000_000_000
    """What is written to the worker's disk before the upload."""
    allows_per_request_model: ClassVar[bool] = False

    def __init__(self, *, api_key: str | None = None, base_url: str | None = None, client: Any | None = None) -> None:
        super().__init__(client=client or BatchClient(_address(base_url), (api_key or "").strip() or None))

    def validate_requests(
        self,
        requests: list[BatchRequest],
        *,
        model: str,
        output_spec: OutputSpec,
        idempotency_key: str,
        **kwargs: Any,
    ) -> None:
        """Raises LLMBatchInputError's children, before any call, for what could not be one batch."""
        self.check_custom_id_length(idempotency_key, len(requests))
        if len(requests) > self.max_requests:
            raise LLMBatchLimitExceededError(
                f"The input has {len(requests):,} requests, and one batch takes {self.max_requests:,} at most. "
                f"Nothing was submitted. {REMEDY}"
            )
        size = 0
        for number, line in enumerate(self._lines(requests, model, idempotency_key, output_spec, kwargs)):
            size += len(line)
            if size > self.max_payload_bytes:
                raise LLMBatchLimitExceededError(
                    f"The requests up to number {number} of {len(requests):,} take {size:,} bytes, and one batch takes "
                    f"{self.max_payload_bytes:,} at most. Nothing was submitted. {REMEDY}"
                )

    def submit(
        self,
        requests: list[BatchRequest],
        *,
        model: str,
        idempotency_key: str,
        input_fingerprint: str,
        output_spec: OutputSpec,
        **kwargs: Any,
    ) -> SubmitResult:
        """Uploads the requests by way of a file on disk, and submits them under a key."""
        lines = self._lines(requests, model, idempotency_key, output_spec, kwargs)
        uploaded = self._uploaded(f"{idempotency_key}.jsonl", lines)
        batch = self._client.submit(
            BatchCreate(
                input_file_id=uploaded.id,
                endpoint=CHAT_COMPLETIONS,
                completion_window=kwargs.get("completion_window") or "24h",
                metadata={"idempotency_key": idempotency_key, "input_fingerprint": input_fingerprint},
                key=_key(idempotency_key, input_fingerprint),
                origin=_origin(),
            )
        )
        if batch.input_file_id != uploaded.id:
            # The batch was there already, with a file of its own.
            with suppress(BatchLLMError):
                self._client.delete_file(uploaded.id)
        return SubmitResult(batch_id=batch.id, provider_input_ref=batch.input_file_id)

    def get_batch(self, batch_id: str) -> BatchState:
        with _not_found_in_common_ais_way():
            batch = self._client.get(batch_id)
        errors = batch.errors.data if batch.errors else []
        return BatchState(
            status=batch.status.value if batch.status.ended else "in_progress",
            counts=_counts(batch),
            error_message=" ".join(error.message for error in errors) or None,
        )

    def cancel_batch(self, batch_id: str) -> None:
        with _not_found_in_common_ais_way():
            self._client.cancel(batch_id)

    def iter_results(self, batch_id: str) -> Iterator[RawResultItem]:
        with _not_found_in_common_ais_way():
            batch = self._client.get(batch_id)
        return self._items([file_id for file_id in (batch.output_file_id, batch.error_file_id) if file_id])

    def build_output_directive(self, spec: OutputSpec) -> dict[str, Any]:
        """The schema as vLLM's constrained decoding takes it: an answer that ends is of that shape."""
        if not spec.is_structured:
            return {}
        schema = {"name": spec.schema_name, "schema": spec.json_schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def extract_output(self, raw: RawResultItem, spec: OutputSpec) -> ExtractedOutput:
        if raw.raw is None:
            return ExtractedOutput(kind="absent")
        return ExtractedOutput(kind="json_text" if spec.is_structured else "text", text=raw.raw)

    def find_orphaned_batch(self, idempotency_key: str, input_fingerprint: str, not_before: str) -> str | None:
        """The batch under the key, if it is not older than ``not_before``. Raises where the service cannot be read."""
        batch: Batch | None = self._client.find(_key(idempotency_key, input_fingerprint))
        if batch is None:
            return None
        if not_before and batch.created_at < (datetime.fromisoformat(not_before) - CLOCK_SLACK).timestamp():
            return None
        return batch.id

    def _lines(
        self, requests: list[BatchRequest], model: str, key: str, spec: OutputSpec, asked: dict[str, Any]
    ) -> Iterator[bytes]:
        same = Asked(
            model=model,
            system_prompt=asked.get("system_prompt") or "",
            max_tokens=asked.get("max_tokens") or 1024,
            parameters=asked.get("request_params") or {},
            directive=self.build_output_directive(spec),
        )
        for number, request in enumerate(requests):
            named = self.resolve_request_model(request.get("model"), default_bare_model=model, request_index=number)
            if named != model:
                raise LLMBatchModelMismatchError(
                    f"Request {number} is for the model {named!r} and the batch for {model!r}: one batch is for one "
                    "model. Nothing was submitted. Submit a batch for each model."
                )
            yield request_line(f"{key}-{number}", request, same)

    def _uploaded(self, name: str, lines: Iterator[bytes]) -> FileObject:
        with tempfile.TemporaryDirectory(prefix="batch-llm-") as folder:
            path = Path(folder) / name
            with path.open("wb") as stream:
                stream.writelines(lines)
            uploaded: FileObject = self._client.upload(path)
            return uploaded

    def _items(self, file_ids: list[str]) -> Iterator[RawResultItem]:
        for file_id in file_ids:
            for number, line in enumerate(self._client.file_lines(file_id), start=1):
                item = result_item(line, place=f"line {number} of file {file_id}")
                if item is not None:
                    yield item


@contextmanager
def _not_found_in_common_ais_way() -> Iterator[None]:
    try:
        yield
    except NotFoundError as error:
        raise NoSuchBatchError(error.message, code=error.code, param=error.param) from error


def _address(host: str | None) -> str:
    host = (host or "").strip()
    if not host:
        raise ValueError(
            "The connection has no host. For common.ai's operators its host is the whole address of "
            "`batch-llm serve`, with the port, for example http://gpu-host:8765: they do not pass on its other fields."
        )
    return host if "://" in host else f"http://{host}"


def _key(idempotency_key: str, input_fingerprint: str) -> str:
    """Names this Airflow too: common.ai's own key is the same in two that run the same Dags on one service."""
    return f"{_deployment()}/common.ai/{idempotency_key}/{input_fingerprint}"


def _origin() -> Origin | None:
    """The task that submits, where it is one: the adapter's caller does not say."""
    try:
        return origin_of(get_current_context()["ti"], _deployment())
    except RuntimeError:  # no task runs here
        return None


def _deployment() -> str:
    return str(conf.get("api", "base_url", fallback=None) or "airflow").rstrip("/")


def _counts(batch: Batch) -> dict[str, int]:
    """The rows by what became of them; those that a batch which ended early left undone carry its own status."""
    counts = batch.request_counts
    undone = max(counts.total - counts.completed - counts.failed, 0)
    return {
        "succeeded": counts.completed,
        "errored": counts.failed,
        "expired": undone if batch.status == BatchStatus.EXPIRED else 0,
        "cancelled": undone if batch.status == BatchStatus.CANCELLED else 0,
    }
