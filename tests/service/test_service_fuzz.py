"""Whatever is in a table, a request file, a template or a schema: its user gets answers or a sentence that says why.

Hypothesis makes the inputs, of the pieces that readers stumble over. What an answer with HTTP 500, a hang, a duty that
is tried for ever or a message with Python's own words in it would be is a failure here.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_batch_llm.output_schema import check_output_schema
from airflow_batch_llm.wire import Batch
from airflow_batch_llm.worker.answer_check import SchemaCheck
from tests.conftest import RunningService
from tests.service.answering import answer_all

WHOLE = bool(os.environ.get("WHOLE"))
"""More of everything, and other inputs each time."""

fuzzed = settings(
    max_examples=500 if WHOLE else 12,
    derandomize=not WHOLE,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

PYTHONS_OWN = ("Traceback", 'File "', "<class", "object at 0x", "Error(", "Exception", "NoneType", "site-packages")
"""What no user should have to read."""
NUMBERS = itertools.count()

NOISE = st.binary(max_size=30)
JSON_PIECES = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"\r\n", b" ", b"null", b"true", b"NaN", b"-", b"1e999"),
    *(b"1" * 400, b'"\\ud800"', b"\xff", b"\x00", b"\xef\xbb\xbf", b"[" * 3_000, b'{"a":' * 3_000, b'"text"'),
    *(
        b'{"text":"a"}\n',
        b'{"text":"a","text":"b"}\n',
        b'{"text":1}\n',
        b'{"text":{"b":[1,"c"]}}\n',
        b'{"":0,"text":""}\n',
    ),
]
CSV_PIECES = [
    *(
        b"text",
        b",",
        b'"',
        b'""',
        b"\n",
        b"\r",
        b"\r\n",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b";",
        b"\t",
        b" ",
        b"a" * 9_000,
    ),
    *(b"a\n", b"a,b\n", b'"a\nb"\n', b'"a""b",c\n', b"\n\n"),
]
REQUEST_PIECES = [
    *JSON_PIECES,
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}\n',
    b'{"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":'
    b'[{"role":"user","content":"x"}]}}\n',
    b'{"custom_id":7,"method":"GET","url":"","body":[]}\n',
    b'{"custom_id":"\\ud800","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":'
    b'[{"role":"user","content":"\\udfff"}],"max_tokens":1e400}}\n',
]
TEMPLATE_PIECES = [
    *("{text}", "{{text}}", "{", "}", "{{", "}}", "{}", "{0}", "{ text }", "{text!r}", "{text:>99999999999}"),
    *("{text.__class__}", "{text[0]}", "{__import__('os')}", "{{% raw %}}", "{{ var.value.secret }}", "${text}", "%s"),
    *("\ud800", "\x00", "\U0001f600", "e\u0301", "{te\u0301xt}", "{text}" * 500, "x" * 5_000),
]


def content(pieces: list[bytes], good: bytes) -> st.SearchStrategy[bytes]:
    """Pieces and noise; often behind a beginning that is right."""
    return st.builds(
        lambda begin, middle: begin + b"".join(middle),
        st.sampled_from([b"", good, good * 3]),
        st.lists(st.sampled_from(pieces) | NOISE, max_size=8),
    )


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def cut(packed: bytes, at: float) -> bytes:
    return packed[: int(len(packed) * at)]


CUTS = st.just(1.0) | st.floats(0.0, 1.0)


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize(
    ("kind", "pieces", "good"), [("jsonl", JSON_PIECES, b'{"text":"good"}\n'), ("csv", CSV_PIECES, b"text\ngood\n")]
)
def test_any_bytes_of_a_table_are_rows_or_a_sentence(
    service: RunningService, kind: str, pieces: list[bytes], good: bytes, ending: str
) -> None:
    ways = set()

    @fuzzed
    @given(content=content(pieces, good), at=CUTS, prompt=st.sampled_from(["{text}", "x"]))
    def check(content: bytes, at: float, prompt: str) -> None:
        name = f"{next(NUMBERS)}.{kind}{ending}"
        (service.data_root / name).write_bytes(cut(PACKED[ending](content), at))
        dataset = {"source": name, "target": f"to-{name}", "messages": [{"role": "user", "content": prompt}]}
        ways.add(way(service, {"model": "m", "dataset": dataset}))

    check()
    assert ways > {"completed"}


def test_any_bytes_of_a_request_file_are_requests_or_sentences(service: RunningService) -> None:
    ways = set()

    @fuzzed
    @given(content=content(REQUEST_PIECES, REQUEST_PIECES[-3]))
    def check(content: bytes) -> None:
        headers = {"Authorization": f"Bearer {service.token}"}
        given_file = {"file": ("requests.jsonl", content)}
        answer = httpx.post(f"{service.url}/v1/files", headers=headers, files=given_file, data={"purpose": "batch"})
        if answer.status_code != 200:
            ways.add(refused(answer))
            return
        ways.add(
            way(
                service,
                {
                    "input_file_id": answer.json()["id"],
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                },
            )
        )

    check()
    assert {"failed", "completed"} <= ways


def test_any_template_is_rendered_or_refused(service: RunningService) -> None:
    (service.data_root / "rows.jsonl").write_text('{"text":"{text}"}\n{"text":null}\n{"text":"\\u0000{0}"}\n')
    ways = set()

    @fuzzed
    @given(st.lists(st.sampled_from(TEMPLATE_PIECES) | st.text(max_size=5), max_size=6).map("".join))
    def check(template: str) -> None:
        messages = [{"role": "system", "content": template}, {"role": "user", "content": template}]
        dataset = {"source": "rows.jsonl", "target": f"to-{next(NUMBERS)}.jsonl", "messages": messages}
        ways.add(way(service, {"model": "m", "dataset": dataset}))

    check()
    assert "completed" in ways


PATTERN_PIECES = [
    *(
        "*",
        "**",
        "**/",
        "?",
        "/",
        "//",
        "./",
        "../",
        "a",
        "*a" * 20,
        "**/a" * 20,
        "[a",
        "{a,b}",
        "\\",
        "~",
        "$HOME",
        "%2e%2e",
    ),
    *(
        ".csv",
        ".jsonl",
        ".parquet",
        "\n",
        "\x00",
        "\ud800",
        "\U0001f600",
        "file://",
        "s3://b/",
        "ds=1/",
        "%",
        "#?",
        " ",
    ),
]


def test_any_pattern_finds_files_or_is_refused(service: RunningService) -> None:
    for name in ("a.csv", "a" * 60 + ".csv", "ds=1/a.jsonl", "ds=1/b/a a.csv", "a/a/a/a/a/a/a.csv", "\n.csv", "[a.csv"):
        path = service.data_root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\na\n" if name.endswith("csv") else '{"text":"a"}\n')
    ways = set()

    @settings(fuzzed, max_examples=2_000 if WHOLE else 25)
    @given(st.lists(st.sampled_from(PATTERN_PIECES) | st.text(max_size=2), max_size=6).map("".join), st.booleans())
    def check(pattern: str, below: bool) -> None:
        source = f"in/{pattern}" if below else pattern
        dataset = {"source": source, "target": f"{next(NUMBERS)}/", "messages": [{"role": "user", "content": "x"}]}
        answer = post(service, {"model": "m", "dataset": dataset})
        ways.add("found" if answer.status_code == 200 else refused(answer))

    check()
    assert ways == {"found", "refused"}


NAMES = st.lists(
    st.sampled_from(
        [b"a", b"\xff", b"\xc3", b"\n", b"\r", b"'", b'"', b"\\", b"%2f", b"=", b"#", b"?", b"*", b"{text}", b" "]
    )
    | st.binary(min_size=1, max_size=3),
    min_size=1,
    max_size=4,
).map(lambda pieces: b"".join(pieces).translate(None, b"\x00/"))


def test_any_name_of_a_file_is_kept_or_refused(service: RunningService) -> None:
    ways = set()

    @settings(fuzzed, max_examples=500 if WHOLE else 12)
    @given(NAMES, NAMES, st.sampled_from([b".csv", b".jsonl", b""]))
    def check(folder: bytes, name: bytes, ending: bytes) -> None:
        number = next(NUMBERS)
        below = service.data_root / f"in-{number}" / os.fsdecode(folder.strip(b".") or b"f")
        below.mkdir(parents=True)
        (below / os.fsdecode(name + ending)).write_bytes(b"text\na\n" if ending == b".csv" else b'{"text":"a"}\n')
        dataset = {
            "source": f"in-{number}/",
            "target": f"out-{number}/",
            "messages": [{"role": "user", "content": "{text}"}],
        }
        ways.add(way(service, {"model": "m", "dataset": dataset}))

    check()
    assert ways == {"completed", "refused"}


ODD_NUMBERS = ["", "0", "-1", "9" * 15, "9" * 16, "1e3", "\N{ARABIC-INDIC DIGIT THREE}", " 1", "0x1", "1.1"]
NUMERALS = st.integers(0, 6).map(str) | st.integers(0, 300).map(str) | st.sampled_from(ODD_NUMBERS)
KINDS = st.sampled_from(["line-", "line-", "part-", "row-", "", "x"])
CURSORS = st.builds("{}{}{}".format, KINDS, NUMERALS, st.just("") | NUMERALS.map(".{}".format))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".csv.gz", ".parquet"])
def test_any_cursor_of_an_ended_table_gives_rows_or_a_sentence(service: RunningService, ending: str) -> None:
    (service.data_root / "rows.csv").write_text('text\na\n"b\nb"\n"c,"""\nd\n')
    dataset = {"source": "rows.csv", "target": f"t{ending}", "messages": [{"role": "user", "content": "{text}"}]}
    batch = Batch.model_validate_json(post(service, {"model": "m", "dataset": dataset}).content)
    assert len(answer_all(service, batch)) == 4
    url = f"{service.url}/v1/batches/{batch.id}/results"
    ways = set()

    @settings(fuzzed, max_examples=2_000 if WHOLE else 25)
    @given(CURSORS | st.text(max_size=5), st.integers(1, 5))
    def check(after: str, limit: int) -> None:
        headers = {"Authorization": f"Bearer {service.token}"}
        answer = httpx.get(url, params={"after": after, "limit": limit}, headers=headers)
        ways.add("rows" if answer.status_code == 200 else refused(answer))

    check()
    assert ways == {"rows", "refused"}


TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null", "any", "", 1, None])
REFERENCES = ["#", "#/$defs/a", "#/properties/a", "#/nowhere", "http://127.0.0.1:1/x", "file:///etc/passwd", "", "#/%7"]
PATTERNS = ["^a$", "(a+)+$", "(", "[", "\\", "(?P<a>x)(?P=a)", "a{1,99999}", "\\p{L}"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


def _schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["a", "b", "llm_status", "", "\ud800"]), inner, max_size=3)
    listed = st.lists(inner, max_size=3)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": TYPES | st.lists(TYPES, max_size=2),
        "properties": named,
        "required": st.lists(st.sampled_from(["a", "b", 3]), max_size=3),
        "items": inner | listed,
        "prefixItems": listed,
        "anyOf": listed,
        "allOf": listed,
        "$ref": st.sampled_from(REFERENCES),
        "$defs": named,
        "enum": st.lists(LEAVES, max_size=3),
        "const": LEAVES,
        "pattern": st.sampled_from(PATTERNS),
        "format": st.sampled_from(["date-time", "uuid", "nonsense", 7]),
        "minimum": LEAVES,
        "maxLength": LEAVES,
        "additionalProperties": inner,
        "title": st.text(max_size=3),
    }
    return st.fixed_dictionaries({}, optional=keywords)


SCHEMAS = st.recursive(st.fixed_dictionaries({}, optional={"type": TYPES}) | LEAVES, _schemas, max_leaves=8)
USUAL = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": 0},
        {"type": ["number", "null"]},
        {"enum": ["x", "y"]},
        {"type": "array", "items": {"type": "string"}},
        *({"type": "string", "pattern": pattern} for pattern in PATTERNS),
    ]
)
RECORDS = st.builds(
    lambda inner, more: {"type": "object", "properties": inner, "required": list(inner)} | more,
    st.dictionaries(st.sampled_from(["a", "b"]), USUAL | SCHEMAS, min_size=1, max_size=2),
    st.just({}) | st.fixed_dictionaries({"$defs": st.dictionaries(st.just("a"), SCHEMAS, max_size=1)}),
)
TEXTS = ["", "{}", "[]", "null", '{"a":null}', '{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaaa!"}', '{"a":1,"b":[]}', '{"a":1e400}']


def test_any_schema_is_kept_to_or_refused(service: RunningService) -> None:
    (service.data_root / "rows.jsonl").write_text('{"text":"a"}\n')
    ways = set()

    @settings(fuzzed, max_examples=5_000 if WHOLE else 100)
    @given(st.one_of(RECORDS, SCHEMAS))
    def check(schema: Any) -> None:
        dataset = {
            "source": "rows.jsonl",
            "target": f"to-{next(NUMBERS)}.jsonl",
            "messages": [{"role": "user", "content": "{text}"}],
            "output_schema": schema,
        }
        answer = post(service, {"model": "m", "dataset": dataset})
        if answer.status_code != 200:
            ways.add(refused(answer))
            return
        if schema is None:
            return
        ways.add("kept to")
        as_sent = json.loads(json.dumps(schema))
        check_output_schema(as_sent)
        kept = SchemaCheck.of(as_sent)
        for text in TEXTS:
            fault = kept.fault(text, "stop")
            assert fault is None or readable(fault[1])

    check()
    assert ways == {"refused", "kept to"}


def way(service: RunningService, body: dict[str, Any]) -> str:
    """What became of a submit: ``refused``, ``failed`` when it was planned, or ``completed`` with every row."""
    answer = post(service, body)
    if answer.status_code != 200:
        return refused(answer)
    batch = Batch.model_validate_json(answer.content)
    rows = answer_all(service, batch)
    batch = service.client.get(batch.id)
    assert batch.progress.waiting_for is None
    for error in batch.errors.data if batch.errors else []:
        assert readable(error.message)
    if batch.status != "failed":
        assert (batch.status, len(rows)) == ("completed", batch.request_counts.total)
        assert all(readable(row["llm_error"]) for row in rows if row.get("llm_error"))
    return str(batch.status)


def post(service: RunningService, body: dict[str, Any]) -> httpx.Response:
    """As any client might send it: with lone surrogates and numbers that are none."""
    headers = {"Authorization": f"Bearer {service.token}", "Content-Type": "application/json"}
    return httpx.post(f"{service.url}/v1/batches", headers=headers, content=json.dumps(body), timeout=30.0)


def refused(answer: httpx.Response) -> str:
    assert answer.status_code in (400, 413), answer.text
    assert readable(answer.json()["error"]["message"])
    return "refused"


def readable(message: str) -> bool:
    assert not [word for word in PYTHONS_OWN if word in message], message
    assert message[:1].isprintable()
    assert message.endswith((".", "…")), message
    return True
