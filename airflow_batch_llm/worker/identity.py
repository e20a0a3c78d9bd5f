"""What an engine's answers depend on, as a hash: equal identities give equal answers to equal greedy rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ANSWER_FLAGS: Final = frozenset(
    {
        "--chat-template",
        "--default-chat-template-kwargs",
        "--dtype",
        "--generation-config",
        "--hf-overrides",
        "--kv-cache-dtype",
        "--lora-modules",
        "--override-generation-config",
        "--quantization",
        "--reasoning-parser",
        "--revision",
        "--tokenizer",
        "--tokenizer-revision",
    }
)
"""The flags of ``vllm serve`` that change what a model answers."""

_SHORT_FLAGS: Final = {"-q": "--quantization"}
WHOLE_FILE_BYTES: Final = 64 << 20
EDGE_BYTES: Final = 1 << 20
_SUFFIXES: Final = frozenset({".json", ".jinja", ".model", ".txt", ".safetensors", ".bin"})


def engine_identity(model: str, arguments: Sequence[str]) -> str:
    """A hash over the model's files (weights, tokenizer, chat template) and the flags that change its answers.

    Of a file above 64 MiB its size and its first and last MiB count: reading hundreds of gigabytes at each start
    would cost more than it proves. A model that is no local folder counts by its name and ``--revision``.
    """
    digest = hashlib.sha256()
    for flag in sorted(_answer_flags(arguments)):
        digest.update(f"{flag}\n".encode())
    folder = Path(model)
    if not folder.is_dir():
        digest.update(f"name {model}\n".encode())
        return digest.hexdigest()
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES:
            digest.update(f"file {path.name} {path.stat().st_size}\n".encode())
            for block in _telling_bytes(path):
                digest.update(block)
    return digest.hexdigest()


def _telling_bytes(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        if path.stat().st_size <= WHOLE_FILE_BYTES:
            yield stream.read()
            return
        yield stream.read(EDGE_BYTES)
        stream.seek(-EDGE_BYTES, 2)
        yield stream.read()


def _answer_flags(arguments: Sequence[str]) -> Iterator[str]:
    """The flags that count, each as ``--flag=value`` however it was written."""
    for position, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        flag = _SHORT_FLAGS.get(flag, flag).replace("_", "-")  # vLLM takes both
        if flag in ANSWER_FLAGS:
            value = value or next(iter(arguments[position + 1 : position + 2]), "")
            yield f"{flag}={value}"
