"""An OpenAI-compatible server that does as a test says. It marks every answer, so that none can pass for a model's.

For benchmarks it runs by itself: ``python -m tests.worker.fake_engine --port N``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import math
import operator
import struct
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import orjson
from aiohttp import web

from airflow_batch_llm.models import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, ENDPOINTS, RESPONSES, TOKENIZE

MARK = "FAKE: "
TOKEN_PROBABILITY = 0.5
DYING_SECONDS = 0.02
AWAY_SECONDS = 0.4

Trouble = Literal["500", "drop", "abort", "unknown reason", "no reason"]


@dataclass(frozen=True)
class Moment:
    """A row came in, or its answer went out."""

    what: Literal["in", "out"]
    batch_id: str
    row: int


@dataclass
class FakeEngine:
    """Answers ``FAKE: `` and the row's last message, after the troubles that a test set.

    Where a JSON schema is asked for, it answers an instance of it, with marked texts.
    """

    model: str = "fake"
    healthy: bool = True
    delay: float = 0.0
    port: int = 0
    """0 for any that is free."""
    remembers: bool = True
    """Whether what came in is kept for the test to look at."""
    prompt_tokens: int = 10
    completion_tokens: int = 5
    refused_word: str | None = None
    """Rows that contain it get the 400 of a prompt that is too long."""
    troubles: defaultdict[int, deque[Trouble]] = field(default_factory=lambda: defaultdict(deque))
    """What a row (by number) meets at its next tries, one after another, before it is answered."""
    always: dict[int, Trouble] = field(default_factory=dict)
    deadly_word: str | None = None
    """A row that contains it kills the engine: all that are in flight get no answer, and it is away for a while."""
    deaths: int = 0
    tokens: int | None = 0
    """What its metrics count; None where it has none."""
    beside: list[int] = field(default_factory=list)
    """How many other rows were in flight at each of those deaths."""
    description: dict[str, Any] | None = None
    """What ``/openapi.json`` says; there is none unless given."""
    description_troubles: int = 0
    """How often that is answered 500 before."""
    held: set[int] | None = field(default_factory=set)
    """Rows that get no answer until :meth:`let_go`; None for all."""

    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each (batch id, row) came in."""
    moments: list[Moment] = field(default_factory=list)
    looks: int = 0
    """How often somebody asked which models are served."""
    spelled: Callable[[bytes], bytes] = bytes
    """How the JSON of an answer is written."""
    answered: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    contents: list[bytes] = field(default_factory=list)
    """The bodies as they came."""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        for endpoint in (*ENDPOINTS, TOKENIZE):
            app.router.add_post(endpoint, self._completion)
        app.router.add_get("/openapi.json", self._described)
        app.router.add_get("/metrics", self._metrics)
        # A row whose client is gone is no longer in flight, as with vLLM.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gate.set()
        await self._runner.cleanup()

    def let_go(self) -> None:
        """Answers the held rows, and holds no more."""
        self.held = set()
        self._gate.set()

    @property
    def rows_asked_twice(self) -> dict[tuple[str, int], int]:
        return {row: times for row, times in self.asked.items() if times > 1}

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.tokens is None:
            return web.Response(status=404)
        return web.Response(text=f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}\n')

    async def _models(self, request: web.Request) -> web.Response:
        self.looks += 1
        if not self.healthy:
            return web.Response(status=503)
        return web.json_response({"data": [{"id": self.model}]})

    async def _completion(self, request: web.Request) -> web.Response:
        batch_id, _, row = request.headers["X-Request-Id"].rpartition("-")
        content = await request.read()
        body = orjson.loads(content)
        if self.remembers:
            self.contents.append(content)
            self.bodies.append(body)
            self.asked[batch_id, int(row)] += 1
            self.moments.append(Moment("in", batch_id, int(row)))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.deadly_word is not None and self.deadly_word in _text(body):
                await self._die()
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.held is None or int(row) in self.held:
                await self._gate.wait()
            return self._answer(request, int(row), body)
        finally:
            self.in_flight -= 1
            if self.remembers:
                self.moments.append(Moment("out", batch_id, int(row)))

    def _answer(self, request: web.Request, row: int, body: dict[str, Any]) -> web.Response:
        text = _text(body)
        trouble = self.always.get(row) or (self.troubles[row].popleft() if self.troubles[row] else None)
        if not self.healthy or trouble == "500":
            return web.json_response({"error": {"message": "EngineCore encountered an issue."}}, status=500)
        if trouble == "drop":
            assert request.transport is not None
            request.transport.abort()
        if self.refused_word is not None and self.refused_word in text:
            return self._too_long()
        self.answered += trouble is None
        answer = orjson.dumps(_ANSWERS[request.path](self, text, trouble, body))
        return web.Response(body=self.spelled(answer), content_type="application/json")

    async def _die(self) -> None:
        await asyncio.sleep(DYING_SECONDS)  # time for others to come in
        if not self.healthy:
            return
        self.healthy = False
        self.deaths += 1
        self.beside.append(self.in_flight - 1)
        asyncio.get_running_loop().call_later(AWAY_SECONDS, self._revive)

    def _revive(self) -> None:
        self.healthy = True

    def _too_long(self) -> web.Response:
        self.answered += 1
        message = "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025."
        problem = {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}
        return web.json_response({"error": problem}, status=400)

    def chat(self, text: str, trouble: Trouble | None, body: dict[str, Any]) -> dict[str, Any]:
        reason = _REASONS.get(trouble or "", "stop")
        choices = []
        for index in range(body.get("n") or 1):
            content = _content(body, text if reason == "stop" else text[:1], index)
            choice = {"index": index, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
            choices.append(choice | ({"logprobs": _logprobs(content)} if body.get("logprobs") else {}))
        return {"choices": choices, "usage": self._usage(), "system_fingerprint": MARK}

    def completion(self, text: str, trouble: Trouble | None, body: dict[str, Any]) -> dict[str, Any]:
        reason = _REASONS.get(trouble or "", "stop")
        return {"choices": [{"index": 0, "text": MARK + text, "finish_reason": reason}], "usage": self._usage()}

    def embedding(self, text: str, trouble: Trouble | None, body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        vector: Any = [0.5, float(len(text))]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
        data = [] if trouble else [{"index": 0, "object": "embedding", "embedding": vector}]
        return {"object": "list", "mark": MARK, "data": data, "usage": usage}

    def response(self, text: str, trouble: Trouble | None, body: dict[str, Any]) -> dict[str, Any]:
        output = [{"type": "message", "content": [{"type": "output_text", "text": MARK + text}]}]
        usage = {"input_tokens": self.prompt_tokens, "output_tokens": self.completion_tokens}
        usage |= {"input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 2}}  # type: ignore[dict-item]
        status = _STATUSES.get(trouble or "", "completed")
        return {"object": "response", "status": status, "output": output, "usage": usage}

    def tokenized(self, text: str, trouble: Trouble | None, body: dict[str, Any]) -> dict[str, Any]:
        return {"count": self.prompt_tokens, "mark": MARK}

    def _usage(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}

    async def _described(self, request: web.Request) -> web.Response:
        if self.description_troubles:
            self.description_troubles -= 1
            return web.Response(status=500)
        return web.Response(status=404) if self.description is None else web.json_response(self.description)


_REASONS = {"abort": "abort", "unknown reason": "repetition", "no reason": None}
_STATUSES = {"abort": "cancelled", "unknown reason": "failed", "no reason": "queued"}
_ANSWERS = {
    CHAT_COMPLETIONS: FakeEngine.chat,
    COMPLETIONS: FakeEngine.completion,
    EMBEDDINGS: FakeEngine.embedding,
    RESPONSES: FakeEngine.response,
    TOKENIZE: FakeEngine.tokenized,
}


def _content(body: dict[str, Any], text: str, index: int) -> str:
    """The answer to a prompt: the first instance of a schema, or the prompt itself. Each sample says which it is."""
    schema = (body.get("structured_outputs") or {}).get("json")
    if schema is not None:
        return orjson.dumps(_instance(schema, schema, text)).decode()
    return MARK + text + (f" #{index}" if (body.get("n") or 1) > 1 else "")


def _instance(node: dict[str, Any], root: dict[str, Any], text: str) -> Any:
    """A small instance of a schema, the same for the same prompt. Its free texts are marked."""
    if "$ref" in node:
        return _instance(functools.reduce(operator.getitem, node["$ref"].split("/")[1:], root), root, text)
    for source in ("anyOf", "oneOf", "allOf"):
        if source in node:
            return _instance(node[source][0], root, text)
    values = [node["const"]] if "const" in node else node.get("enum")
    if values is not None:
        return values[zlib.crc32(text.encode()) % len(values)]
    match node["type"] if isinstance(node["type"], str) else node["type"][0]:
        case "object":
            return {name: _instance(part, root, text) for name, part in node["properties"].items()}
        case "array":
            return [_instance(node["items"], root, text)] * max(1, node.get("minItems", 0))
    return _plain_instance(node, text)


def _plain_instance(node: dict[str, Any], text: str) -> Any:
    made = {
        "string": (MARK + text).ljust(node.get("minLength", 0), ".")[: node.get("maxLength")],
        "boolean": len(text) % 2 == 0,
        "integer": node.get("minimum", len(text)),
        "number": node.get("minimum", len(text) / 4),
    }
    return made[node["type"] if isinstance(node["type"], str) else node["type"][0]]


def _logprobs(content: str) -> dict[str, Any]:
    """A token for each word and one for the end, each as probable as ``TOKEN_PROBABILITY``."""
    tokens = [*content.split(), ""]
    return {"content": [{"token": token, "logprob": math.log(TOKEN_PROBABILITY)} for token in tokens]}


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("prompt", body.get("input", "")))


async def _stand_alone(port: int) -> None:
    async with FakeEngine(port=port, remembers=False):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_stand_alone(parser.parse_args().port))
