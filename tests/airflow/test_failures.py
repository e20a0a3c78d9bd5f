"""What a task's log says of failed rows: codes and counts, and never a text of a row."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from test_waiting import batch

from airflow_batch_llm.client.batch_client import BatchClient
from airflow_batch_llm.errors import NoAnswerError
from airflow_batch_llm.hooks.failures import MOST_LINES, log_failures

pytestmark = pytest.mark.airflow

TEXT = "what the row says"
log = logging.getLogger("test")


class ErrorFile:
    """A client that has an error file and nothing else."""

    def __init__(self, lines: list[Any]) -> None:
        self.lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.read = 0

    def __enter__(self) -> ErrorFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def file_lines(self, file_id: str) -> Any:
        assert file_id == "file-1"
        for line in self.lines:
            self.read += 1
            yield line


def logged(caplog: pytest.LogCaptureFixture, about: Any, client: Any = None) -> list[str]:
    with caplog.at_level(logging.INFO):
        log_failures(about, lambda: client, log)
    return [record.getMessage() for record in caplog.records]


def of_table(**failures: int) -> Any:
    about = batch(failed=sum(failures.values()))
    assert about.manifest is not None
    about.manifest.failures = failures
    return about


def of_requests() -> Any:
    return batch(manifest=None, error_file_id="file-1")


def test_failed_rows_are_a_group_of_codes_the_commonest_first(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, of_table(engine_refused=1, context_length_exceeded=1_200)) == [
        "::group::Failed rows of batch batch_1 by code",
        "context_length_exceeded: 1,200 rows. Prompt and longest answer are together more than the model's context.",
        "engine_refused: 1 rows. The engine refused the request.",
        "::endgroup::",
    ]


def test_without_failed_rows_there_is_no_group(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, of_table()) == []


def test_many_codes_are_cut_with_a_number(caplog: pytest.LogCaptureFixture) -> None:
    assert "and 2 more codes" in logged(caplog, of_table(**{f"code_{number}": 1 for number in range(12)}))


def test_the_lines_of_an_error_file_are_counted_and_none_of_their_texts_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problem = {"message": TEXT, "type": TEXT}
    lines = [
        {"custom_id": TEXT, "error": {"code": "batch_expired", "message": TEXT}},
        {"error": {"code": TEXT}, "response": None},
        {"response": {"status_code": 400, "body": {"error": {**problem, "code": 400}}}, "error": None},
        {"response": {"status_code": 400, "body": {"error": {**problem, "code": "too_long"}}}, "error": None},
        [TEXT],
        TEXT.encode(),
    ]
    said = logged(caplog, of_requests(), ErrorFile(lines))
    assert sorted(line.split(".")[0] for line in said[1:-1]) == [
        "batch_expired: 1 rows",
        "http_400: 1 rows",
        "other: 3 rows",
        "too_long: 1 rows",
    ]
    assert TEXT not in "".join(said)


def test_of_a_large_error_file_the_beginning_is_read_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    file = ErrorFile([{"error": {"code": "batch_expired"}}] * (2 * MOST_LINES))
    said = logged(caplog, of_requests(), file)
    assert said[1].startswith(f"batch_expired: {MOST_LINES:,} rows.")
    assert said[2] == f"Counted in the first {MOST_LINES:,} lines of file-1; there are more."
    assert file.read == MOST_LINES + 1


def test_a_file_that_cannot_be_read_is_said_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Away(BatchClient):
        def file_lines(self, file_id: str) -> Any:
            raise NoAnswerError("nobody is there")
            yield

    with caplog.at_level(logging.INFO):
        log_failures(of_requests(), Away, log)
    assert "cannot be read: nobody is there" in caplog.records[0].getMessage()
