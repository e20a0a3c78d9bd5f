"""Attacks by place, name, template and schema: ``python -m tests.service.attacks`` prints what each one gets.

Each is refused at submit, or it is literal: a name among names or a text among texts, which reaches nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import delete

import tests.demo_path  # noqa: F401
from airflow_batch_llm.service.state import ServiceState
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.store.tables import metadata, tokens
from tests.conftest import RunningService, running_service
from tests.service.answering import AnsweringWorker

SECRET = "root-of-all-evil"
"""What lies outside the data root: no answer may hold it."""
BUCKET = "allowed"


@dataclass(frozen=True)
class Attack:
    """What is submitted in place of harmless values. Without ``code`` it is taken, and ``prompt`` is what is asked."""

    name: str
    spec: Mapping[str, Any]
    code: str | None = None
    prompt: str | None = None
    needs: Callable[[Path], None] = field(default=lambda folder: None)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _source(place: str, code: str, **more: Any) -> Attack:
    return Attack(f"source {_short(place)}", {"source": place}, code, **more)


def _target(place: str, code: str, **more: Any) -> Attack:
    return Attack(f"target {_short(place)}", {"target": place}, code, **more)


def _literal(template: str) -> Attack:
    """A template that is a text and no more."""
    messages = [{"role": "user", "content": template}]
    return Attack(f"template {_short(template)}", {"messages": messages}, prompt=template)


def _template(template: str, code: str) -> Attack:
    return Attack(f"template {_short(template)}", {"messages": [{"role": "user", "content": template}]}, code)


def _schema(name: str, properties: Any, code: str = "invalid_output_schema", **more: Any) -> Attack:
    schema = {"type": "object", "properties": properties, **more}
    return Attack(f"schema: {name}", {"output_schema": schema}, code)


def _link(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).symlink_to(folder.parent / to)

    return make


def _named(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text\nhello\n")

    return make


def _laughs(levels: int) -> dict[str, Any]:
    """Each level has the next one twice."""
    twice = {
        f"l{level}": {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/l{level + 1}"} for name in "ab"},
        }
        for level in range(levels)
    }
    return {**twice, f"l{levels}": {"type": "string"}}


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _quarantine(place: str, code: str, **more: Any) -> Attack:
    return Attack(f"quarantine {_short(place)}", {"quarantine": place}, code, **more)


OUT, NO = "place_not_allowed", "place_not_supported"
PLACES = [
    _source("/etc/passwd", OUT),
    _source("../outside/secret.csv", OUT),
    _source("sub/../../outside/secret.csv", OUT),
    _source("./././../outside/secret.csv", OUT),
    _source("//outside/secret.csv", OUT),
    _source("/proc/self/environ", OUT),
    _source("/dev/zero", OUT),
    _source("~/secret.csv", "source_not_found"),
    _source("$HOME/secret.csv", "source_not_found"),
    _source("%2e%2e/outside/secret.csv", "source_not_found"),
    _source("..%2foutside%2fsecret.csv", "source_not_found"),
    _source("..\\outside\\secret.csv", "source_not_found"),
    _source("file:///etc/passwd", OUT),
    _source("FILE:///etc/passwd", OUT),
    _source("file:%2e%2e/outside/secret.csv", OUT),
    _source("file://localhost/etc/passwd", OUT),
    _source("file://evil.example/etc/passwd", NO),
    _source("file:///data/%00.csv", NO),
    _source("in.csv\0.parquet", "invalid_value"),
    _source("IN.CSV", "source_not_found"),
    _source("../data-secret/secret.csv", OUT),
    _source("link/secret.csv", OUT, needs=_link("link", "outside")),
    _source("link.csv", OUT, needs=_link("link.csv", "outside/secret.csv")),
    _source("tables/", OUT, needs=_link("tables", "outside")),
    _source("../outside/*.csv", OUT),
    _source("../data*/secret.csv", OUT),
    _source("sub/**/../../../outside/*.csv", OUT),
    _source("*/secret.csv", OUT, needs=_link("link", "outside")),
    _source("team=../outside/secret.csv", "source_not_found"),
    _source("team=..%2f..%2foutside/secret.csv", "source_not_found"),
    _source("http://169.254.169.254/latest/meta-data.csv", NO),
    _source("https://evil.example/a.csv", NO),
    _source("ftp://evil.example/a.csv", NO),
    _source("data:text/csv,a%0A1", NO),
    _source("gopher://evil.example/a.csv", NO),
    _source("jar:file:///etc/passwd!/a.csv", NO),
    _source("s3://allowed-evil/a.csv", OUT),
    _source("s3://allowed/in-secret/a.csv", OUT),
    _source("s3://allowed/in/../secret/a.csv", NO),
    _source("s3://allowed/in//a.csv", NO),
    _source("s3://allowed/a.csv", OUT),
    _source("s3://user@allowed/in/a.csv", NO),
    _source("s3://allowed@evil/in/a.csv", NO),
    _source("s3://ALLOWED/in/a.csv", NO),
    _source("S3://allowed/in/a.csv", NO),
    _source("s3:allowed/in/a.csv", NO),
    _source("s3://allowed/in*/a.csv", OUT),
    _source("file-../../../etc/passwd", OUT),
    _source("file-00000000000000000000000000000000", "file_not_found"),
    _source("' OR 1=1; DROP TABLE tokens; --.csv", "source_not_found"),
    _source("x" * 5_000 + ".csv", NO),
    _source("*a" * 8 + "Z", "source_not_found", needs=_named("a" * 60 + ".csv")),
    _source("*a" * 100 + "Z", "source_not_found", needs=_named("a" * 60 + ".csv")),
    _source("**/a" * 900, "source_not_found", needs=_named("a/" * 60 + "a.csv")),
    _source("*" * 5_000, NO),
    Attack("a source of 20,000 places", {"source": ["**/*.csv"] * 20_000}, "too_many_places"),
    Attack("a source of 10,000 times a pattern", {"source": ["**/*.csv"] * 10_000}, "file_twice"),
    _target("/etc/cron.d/evil.csv", OUT),
    _target("../outside/evil.csv", OUT),
    _target("../outside/", OUT),
    _target("link/evil.csv", OUT, needs=_link("link", "outside")),
    _target("../data-secret/evil.csv", OUT),
    _target("http://evil.example/a.csv", NO),
    _target("s3://allowed-evil/a.csv", OUT),
    _target("s3://allowed/in/../../other/a.csv", NO),
    _target("in.csv", "target_is_source"),
    _target(".bashrc", "format_not_supported"),
    _quarantine("/etc/cron.d/evil.csv", OUT),
    _quarantine("../outside/evil.csv", OUT),
    _quarantine("sub/../../outside/evil.csv", OUT),
    _quarantine("../outside/secret.csv", OUT),
    _quarantine("link/evil.csv", OUT, needs=_link("link", "outside")),
    _quarantine("link.csv", OUT, needs=_link("link.csv", "outside/secret.csv")),
    _quarantine("../data-secret/evil.csv", OUT),
    _quarantine("file:///etc/evil.csv", OUT),
    _quarantine("file://evil.example/etc/evil.csv", NO),
    _quarantine("http://evil.example/a.csv", NO),
    _quarantine("s3://allowed-evil/a.csv", OUT),
    _quarantine("s3://allowed/in/../../other/a.csv", NO),
    _quarantine("s3://allowed/a.csv", OUT),
    _quarantine("evil.csv\0.parquet", "invalid_value"),
    _quarantine("in.csv", "quarantine_is_source"),
    _quarantine("file-00000000000000000000000000000000", "format_not_supported"),
    _quarantine("out.csv", "quarantine_is_target"),
    _quarantine("sub/../out.csv", "quarantine_is_target"),
    _quarantine("sub/", "quarantine_is_folder"),
    _quarantine(".bashrc", "format_not_supported"),
    _quarantine("x" * 5_000 + ".csv", NO),
]
TEMPLATES = [
    _template("{__class__}", "unknown_column"),
    _template("{self}", "unknown_column"),
    _template("{os}", "unknown_column"),
    *map(
        _literal,
        (
            "{0.__init__}",
            "{0}",
            "{}",
            "{text!r}",
            "{text.__class__}",
            "{text.__init__.__globals__}",
            "{text[0]}",
            "{text:>99999999999}",
            "{ text }",
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "{% import os %}{{ 7*7 }}",
            "$(id) `id` %(text)s %s",
            "{{{text.a}}}",
        ),
    ),
    Attack(
        "a placeholder in a format of one",
        {"messages": [{"role": "user", "content": "{text:{text}} ${text}"}]},
        prompt="{text:hello} $hello",
    ),
    Attack(
        "a constant with braces",
        {"messages": [{"role": "user", "content": "{day}"}], "constants": {"day": "{text} {day} {{text}}"}},
        prompt="{text} {day} {{text}}",
    ),
    Attack(
        "a cell with braces",
        {"messages": [{"role": "user", "content": "{evil}"}]},
        prompt="{text} {__class__} {{ 7*7 }}",
    ),
    Attack("a million braces", {"messages": [{"role": "user", "content": "{" * 1_000_000}]}, prompt="{" * 1_000_000),
    Attack("a role of one's own", {"messages": [{"role": "tool", "content": "x"}]}, "invalid_request"),
    Attack("a chat template of one's own", {"parameters": {"chat_template": "{{ 7*7 }}"}}, "unknown_parameter"),
    Attack("a list without end of samples", {"parameters": {"n": 10**9}}, "invalid_parameter"),
    Attack("parameters nested 100 deep", {"parameters": {"stop": _deep(100)}}, "invalid_value"),
]
SCHEMAS = [
    _schema("$ref to http", {"a": {"$ref": "http://169.254.169.254/schema"}}),
    _schema("$ref to a file", {"a": {"$ref": "file:///etc/passwd"}}),
    _schema("$ref beside it", {"a": {"$ref": "other.json"}}),
    _schema("$schema from elsewhere", {"a": {"type": "string"}}, **{"$schema": "http://evil.example/dialect"}),
    _schema("$id and $dynamicRef", {"a": {"$dynamicRef": "http://evil.example/#a"}}),
    _schema("$ref to itself", {"a": {"$ref": "#"}}),
    _schema("a circle of $ref", {"a": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": {"$ref": "#/$defs/x"}}}),
    _schema("a billion laughs", {"a": {"$ref": "#/$defs/l0"}}, **{"$defs": _laughs(30)}),
    _schema("a thousand laughs, less deep", {"a": {"$ref": "#/$defs/l0"}}, **{"$defs": _laughs(10)}),
    _schema("nested 20 deep", {"a": _deep(20)}),
    _schema("nested 100 deep", {"a": _deep(100)}, "invalid_value"),
    _schema("501 properties", {f"p{number}": {"type": "string"} for number in range(501)}),
    _schema("a pattern that is none", {"a": {"type": "string", "pattern": "(("}}),
    _schema("a pattern without end", {"a": {"type": "string", "pattern": "((a{1000}){1000}){1000}"}}),
]
ATTACKS = PLACES + TEMPLATES + SCHEMAS


def prepare(root: Path) -> None:
    """The data root and what lies beside it."""
    (root / "in.csv").write_text('text,evil\nhello,"{text} {__class__} {{ 7*7 }}"\n')
    (root / "sub").mkdir()
    for name in ("outside", "data-secret"):
        beside = root.parent / name
        beside.mkdir()
        (beside / "secret.csv").write_text(f"text\n{SECRET}\n")


def emptied(service: RunningService) -> RunningService:
    """The service with nothing in its store but its tokens, and with its data root as it was."""
    with service.state.database.writing() as connection:
        for stored in reversed(metadata.sorted_tables):
            if stored is not tokens:
                connection.execute(delete(stored))
    for folder in (service.data_root, *(service.data_root.parent / name for name in ("outside", "data-secret"))):
        shutil.rmtree(folder, ignore_errors=True)
    service.data_root.mkdir()
    prepare(service.data_root)
    return service


@contextlib.contextmanager
def attacked_service(folder: Path) -> Iterator[RunningService]:
    """A service whose data root has forbidden neighbours; :func:`emptied` makes it ready for an attack."""
    from pool import free_port

    settings = ServiceSettings(
        home=folder / "home", data_roots=(folder / "data",), data_prefixes=(f"s3://{BUCKET}/in",), port=free_port()
    )
    state = ServiceState.open(settings)
    with running_service(state, settings.token_path.read_text().strip()) as service:
        yield service


def submit(service: RunningService, attack: Attack) -> httpx.Response:
    attack.needs(service.data_root)
    harmless = {"source": "in.csv", "target": "out.csv", "messages": [{"role": "user", "content": "{text}"}]}
    create = {"model": "m", "dataset": {**harmless, **attack.spec}}
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.post(f"{service.url}/v1/batches", json=create, headers=headers, timeout=30)


def asked(service: RunningService) -> str:
    """What a worker is given to ask for the row of a batch that was taken."""
    import msgspec

    while service.plan():
        pass
    claimed = AnsweringWorker(service).claim()
    assert claimed is not None
    [row] = claimed[1]
    return str(msgspec.json.decode(bytes(row.body))["messages"][0]["content"])


def reached(service: RunningService) -> list[str]:
    """What an attack has left outside the data root."""
    beside = service.data_root.parent
    found = [path for name in ("outside", "data-secret") for path in (beside / name).iterdir()]
    return [str(path) for path in found if path.name != "secret.csv" or SECRET not in path.read_text()]


def table() -> Iterator[str]:
    """What each attack gets, as Markdown, a line at a time."""
    yield "| attack | answer | in words |"
    yield "|---|---|---|"
    with tempfile.TemporaryDirectory() as name, attacked_service(Path(name)) as service:
        for attack in ATTACKS:
            response = submit(emptied(service), attack)
            if response.is_error:
                error = response.json()["error"]
                answer, words = f"{response.status_code} {error['code']}", error["message"]
            else:
                answer, words = "taken", f"asked as it stands: {asked(service)}"
            yield f"| {_cell(attack.name)} | {answer} | {_cell(_short(words.replace(name, ''), 220))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("\0", "\\0")


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
