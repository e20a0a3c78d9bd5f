"""Attacks by place, name, template and schema: each is refused at submit, or stays a literal text."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from airflow_batch_llm.output_schema import output_validator
from airflow_batch_llm.settings import TOKEN_VARIABLE
from tests.conftest import RunningService
from tests.service.attacks import ATTACKS, SECRET, Attack, asked, attacked_service, emptied, reached, submit


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN_VARIABLE, raising=False)
        with attacked_service(tmp_path_factory.mktemp("attacked")) as running:
            yield running


@pytest.fixture
def attacked(standing: RunningService) -> RunningService:
    return emptied(standing)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_at_submit_or_stays_a_literal_text(attacked: RunningService, attack: Attack) -> None:
    started = time.monotonic()
    response = submit(attacked, attack)
    assert time.monotonic() - started < 10
    assert SECRET not in response.text
    if attack.code is None:
        assert response.status_code == 200, response.text
        assert asked(attacked) == attack.prompt
    else:
        assert response.json()["error"]["code"] == attack.code, response.text
        assert 400 <= response.status_code < 500
        assert attacked.client.list().data == []
    assert reached(attacked) == []


def test_the_attacks_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 40


HOSTILE_NAMES = [
    "../../../etc/passwd.csv",
    "..\\..\\evil.csv",
    "/etc/passwd.csv",
    "a\r\nSet-Cookie: x=1\r\n\r\n.csv",
    '"; filename="b.csv',
    "{text}.csv",
    "s3://allowed/in/a.csv",
    "\N{RIGHT-TO-LEFT OVERRIDE}vsc.evil.csv",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_name_of_an_uploaded_file_is_a_text_and_no_path(attacked: RunningService, name: str) -> None:
    headers = {"Authorization": f"Bearer {attacked.token}"}
    form = {"files": {"file": (name, b"text\nhello\n")}, "data": {"purpose": "dataset"}}
    uploaded = httpx.post(f"{attacked.url}/v1/files", headers=headers, **form).json()  # type: ignore[arg-type]
    content = httpx.get(f"{attacked.url}/v1/files/{uploaded['id']}/content", headers=headers)
    assert content.content == b"text\nhello\n"
    assert "set-cookie" not in content.headers
    assert "\n" not in content.headers["content-disposition"]
    taken = submit(attacked, Attack("uploaded", {"source": uploaded["id"], "target": "out/"}))
    assert taken.status_code == 200, taken.text
    assert asked(attacked) == "hello"
    assert reached(attacked) == []


@pytest.mark.parametrize(
    "path",
    [
        "file-../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/token",
        "file-x%00",
        "../token",
        "' OR 1=1 --",
    ],
)
def test_a_file_id_is_looked_up_and_never_made_a_path_of(attacked: RunningService, path: str) -> None:
    headers = {"Authorization": f"Bearer {attacked.token}"}
    for ending in ("", "/content"):
        with httpx.Client(headers=headers) as http:
            request = http.build_request("GET", attacked.url)
            request.url = request.url.copy_with(raw_path=f"/v1/files/{path}{ending}".replace(" ", "%20").encode())
            response = http.send(request)
        assert response.status_code in (400, 404)
        assert attacked.token not in response.text


@pytest.mark.parametrize("pattern", [r"^(a+)+$", r"^(a|aa)+$", r"^(.*a){20}$", r"^(a*)*\1b$", r"^(?=(a+)+b)a+$"])
def test_a_pattern_that_would_run_for_ever_does_not(attacked: RunningService, pattern: str) -> None:
    """It is taken, for it is a valid one; a worker that checks an answer with it comes to an end."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    assert submit(attacked, Attack("pattern", {"output_schema": schema})).status_code in (200, 400)
    started = time.monotonic()
    output_validator(schema).is_valid({"a": "a" * 5_000 + "!"})
    assert time.monotonic() - started < 5
