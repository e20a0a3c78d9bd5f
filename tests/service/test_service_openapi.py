"""The service answers as its own description says, whatever is sent; the requests are Schemathesis's.

`WHOLE=1` sends more of them, each time others.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

import httpx
import hypothesis
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from airflow_batch_llm.service import batch_routes, file_routes, worker_routes
from airflow_batch_llm.service.access import TEAM
from airflow_batch_llm.service.app import EXTENSIONS
from tests.conftest import RunningService
from tests.service.answering import AnsweringWorker
from tests.service.requests import create, file_of, line, openai_client

load_all_checks()
schemathesis.serializer.alias("application/zstd", "application/octet-stream")

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
WHOLE = bool(os.environ.get("WHOLE"))
ROUTES = (batch_routes, file_routes, worker_routes, *EXTENSIONS)
CALLS = sorted(
    (method, route.path)
    for module in ROUTES
    for route in module.router.routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in route.methods
)
WITHOUT_INPUT = {"/healthz"}


@pytest.fixture(scope="module")
def described(standing_service: RunningService) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{standing_service.url}/openapi.json")


@dataclass(frozen=True)
class Known:
    """Things that are there: ids that are made up are never found."""

    file_id: str
    batch_id: str
    chunk_id: int
    worker_id: str
    attempt: int = 1
    part: int = 0


def known(service: RunningService) -> Known:
    """A file, a batch that has ended, and a chunk of another one under lease."""
    client = openai_client(service)
    ended, running = (create(client, file_of([line(number) for number in range(3)])) for _ in range(2))
    client.batches.cancel(ended.id)
    while service.plan():
        pass
    worker = AnsweringWorker(service)
    claimed = worker.claim()
    assert claimed is not None
    return Known(running.input_file_id, ended.id, claimed[0].chunk_id, worker.worker_id)


def pointed(case: schemathesis.Case, there: Known) -> schemathesis.Case:
    """The case about things that are there where it was about any, in the team that has them."""
    if case.query:
        case.query.pop(TEAM, None)
    for name, value in asdict(there).items():
        if case.path_parameters and name in case.path_parameters:
            case.path_parameters[name] = value
    if isinstance(case.body, dict):
        case.body |= {name: there.file_id for name in ("input_file_id",) if name in case.body}
        case.body |= {name: getattr(there, name) for name in ("worker_id", "attempt") if name in case.body}
    return case


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described(
    service: RunningService, described: BaseSchema, mode: GenerationMode, method: str, path: str
) -> None:
    if mode is GenerationMode.NEGATIVE and path in WITHOUT_INPUT:
        pytest.skip("There is nothing to get wrong.")
    headers = {"Authorization": f"Bearer {service.token}"}
    cases = described[path][method].as_strategy(generation_mode=mode)
    there = known(service)

    @hypothesis.settings(
        max_examples=200 if WHOLE else 10,
        derandomize=not WHOLE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=cases, about_what_is_there=st.booleans())
    def answers(case: schemathesis.Case, about_what_is_there: bool) -> None:
        if about_what_is_there:
            case = pointed(case, there)
        if isinstance(case.body, dict) and isinstance(case.body.get("wait"), (int, float)):
            case.body["wait"] = min(case.body["wait"], 0.01)  # a wait is no answer
        if case.query and isinstance(case.query.get("wait"), (int, float)):
            case.query["wait"] = min(case.query["wait"], 0.01)
        case.call_and_validate(headers=headers, checks=CHECKS)

    answers()


def test_the_description_tells_of_no_answer_that_is_never_given(standing_service: RunningService) -> None:
    text = httpx.get(f"{standing_service.url}/openapi.json").text
    assert "ValidationError" not in text
    for path, operations in json.loads(text)["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert path == "/healthz" or "401" in operation["responses"]


def test_the_description_of_an_upload_names_its_fields(standing_service: RunningService) -> None:
    operation = httpx.get(f"{standing_service.url}/openapi.json").json()["paths"]["/v1/files"]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file", "purpose"]
    assert schema["properties"]["file"]["format"] == "binary"
    assert schema["properties"]["purpose"]["enum"] == ["batch", "dataset"]
