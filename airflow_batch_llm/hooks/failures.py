"""Why rows of a batch failed, as the task's log may say it: codes and how often, and what each means.

The sentence that a row itself has is not logged: an engine's refusal may repeat the prompt, and what does not fit a
schema is quoted. Those stand in the target, or in the error file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, Final, Protocol

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.wire import Batch, ResultRow

MOST_LINES: Final = 1_000
"""How many lines of an error file are read for their codes. A table's manifest has the codes of all rows."""
MOST_CODES: Final = 10
OTHER: Final = "other"

_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What is taken for a code. Anything else could be a text of the row."""

MEANINGS: Final[Mapping[str, str]] = {
    "batch_cancelled": "The batch was cancelled before they were done.",
    "batch_expired": "The batch's time was up before they were done.",
    "column_clash": "A column of the source is named like one that the batch adds.",
    "context_length_exceeded": "Prompt and longest answer are together more than the model's context.",
    "engine_died": "The engine died of each of these rows, also when it was asked nothing else.",
    "engine_error": "The engine failed on them again and again.",
    "engine_refused": "The engine refused the request.",
    "invalid_json_line": "The line of the source is no JSON object.",
    "invalid_utf8": "The line of the source is not UTF-8.",
    "missing_samples": "The engine gave fewer samples than were asked for.",
    "no_text": "The engine gave no text.",
    "not_a_choice": "The answer is none of the choices.",
    "not_finite": "The vector has a number that is not finite.",
    "not_json": "The answer is no JSON.",
    "not_text": "A value of the row cannot be written into a prompt.",
    "row_too_large": "The row is larger than the service takes.",
    "schema_mismatch": "The answer is JSON, but does not fit the output schema.",
    "truncated": "The answer reached the most tokens that it may have (max_tokens).",
    "worker_lost": "Five workers were lost with nothing but this row.",
}


class Log(Protocol):
    def info(self, event: str, *args: Any) -> Any: ...


def log_failures(batch: Batch, client: Callable[[], BatchClient], log: Log) -> None:
    """Logs the codes of the rows that are not a success, as a group; nothing where there are none.

    Never raises: where the codes cannot be read it says so.
    """
    try:
        codes, note = _codes(batch, client)
    except BatchLLMError as error:
        log.info("Why rows of batch %s failed cannot be read: %s", batch.id, error)
        return
    if not codes:
        return
    log.info("::group::Failed rows of batch %s by code", batch.id)
    for code, rows in codes.most_common(MOST_CODES):
        log.info("%s: %s rows. %s", code, f"{rows:,}", MEANINGS.get(code, ""))
    if len(codes) > MOST_CODES:
        log.info("and %s more codes", len(codes) - MOST_CODES)
    if note:
        log.info("%s", note)
    log.info("::endgroup::")


def why_failed(row: ResultRow) -> str:
    """Status and code of a row that failed, and what the code means: nothing that the row itself has as a text."""
    said = (row.columns or {}).get("llm_error")
    if isinstance(said, str):
        code = _fitting(said.partition(":")[0])
    else:
        code = _code_in({"response": row.response, "error": row.error})
    return f"{row.status.value}, {code}. {MEANINGS.get(code, '')}".rstrip()


def _codes(batch: Batch, client: Callable[[], BatchClient]) -> tuple[Counter[str], str]:
    """How many rows have each code, and what is to be said of the count."""
    if batch.manifest is not None:
        known = Counter[str]()
        for code, rows in batch.manifest.failures.items():
            known[_fitting(code)] += rows
        return known, ""
    if batch.error_file_id is None:
        return Counter(), ""
    with client() as opened, closing(_lines_of(opened, batch.error_file_id)) as lines:
        counted = Counter(_code_of(line) for line in islice(lines, MOST_LINES))
        more = next(lines, None) is not None
    note = f"Counted in the first {MOST_LINES:,} lines of {batch.error_file_id}; there are more."
    return counted, note if more else ""


def _lines_of(client: BatchClient, file_id: str) -> Any:
    return client.file_lines(file_id)


def _code_of(line: bytes) -> str:
    """The code of a line of an error file, in the forms of OpenAI's: of the row, of the engine, or an HTTP status."""
    try:
        return _code_in(json.loads(line))
    except ValueError:
        return OTHER


def _code_in(found: Any) -> str:
    return next((_fitting(code) for code in _said(found) if code), OTHER)


def _said(found: Any) -> Iterator[str | None]:
    response = _object(found, "response")
    for error in (_object(found, "error"), _object(_object(response, "body"), "error")):
        code = error.get("code")
        yield code if isinstance(code, str) else None
    status = response.get("status_code")
    yield f"http_{status}" if isinstance(status, int) else None


def _object(found: Any, name: str) -> dict[str, Any]:
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, dict) else {}


def _fitting(code: str) -> str:
    return code if _CODE.fullmatch(code) else OTHER
