"""The service answers as its own description says, whatever is sent; the requests are Schemathesis's."""

from __future__ import annotations

import io
import json

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from openai import OpenAI
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import RunningService

load_all_checks()

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25
CALLS = [
    ("GET", "/healthz"),
    ("GET", "/v1/models"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
]
WITHOUT_INPUT = {"/healthz", "/v1/models"}


@pytest.fixture(scope="module")
def described(standing_service: RunningService) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{standing_service.url}/openapi.json")


def uploaded(service: RunningService) -> str:
    with OpenAI(base_url=f"{service.url}/v1", api_key=service.token) as client:
        return client.files.create(file=("requests.jsonl", io.BytesIO(b"0123456789")), purpose="batch").id


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described(
    standing_service: RunningService, described: BaseSchema, mode: GenerationMode, method: str, path: str
) -> None:
    if mode is GenerationMode.NEGATIVE and path in WITHOUT_INPUT:
        pytest.skip("There is nothing to get wrong.")
    headers = {"Authorization": f"Bearer {standing_service.token}"}
    operation = described[path][method]
    cases = operation.as_strategy(generation_mode=mode)
    if "{file_id}" in path:  # ids that are made up are never found
        known = {"file_id": uploaded(standing_service)}
        cases |= operation.as_strategy(generation_mode=mode, path_parameters=known)

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=cases)
    def answers(case: schemathesis.Case) -> None:
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
    assert schema["properties"]["purpose"]["enum"] == ["batch"]
