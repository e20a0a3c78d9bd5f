"""An engine identity changes with what changes answers, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_batch_llm.worker import identity
from airflow_batch_llm.worker.identity import engine_identity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    files = {
        "config.json": "{}",
        "tokenizer.json": '{"vocab": 1}',
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "model.safetensors.index.json": '{"weight_map": {}}',
        "model.safetensors": "weights",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
    ],
)
def test_it_changes_with_weights_tokenizer_and_chat_template(model: Path, name: str) -> None:
    before = engine_identity(str(model), [])
    content = (model / name).read_text()
    (model / name).write_text(content.swapcase() if content.swapcase() != content else content[::-1] + " ")
    assert engine_identity(str(model), []) != before


def test_it_changes_with_a_file_that_comes_or_goes(model: Path) -> None:
    before = engine_identity(str(model), [])
    (model / "added_tokens.json").write_text("{}")
    assert engine_identity(str(model), []) != before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dtype=bfloat16"],
        ["--quantization=fp8"],
        ["-q", "fp8"],
        ["--override-generation-config={}"],
        ["--lora-modules=a=/a"],
        ["--chat-template=/t.jinja"],
        ["--tokenizer=/t"],
        ["--revision=abc"],
    ],
)
def test_it_changes_with_a_flag_that_changes_answers(model: Path, arguments: list[str]) -> None:
    assert engine_identity(str(model), arguments) != engine_identity(str(model), ["--dtype=float32"])
    assert engine_identity(str(model), arguments) != engine_identity(str(model), [])


@pytest.mark.parametrize(
    "same",
    [
        ["--dtype", "float32", "--quantization", "fp8"],
        ["--quantization=fp8", "--dtype=float32"],
        [
            "--max-num-seqs=8",
            "--dtype=float32",
            "--enforce-eager",
            "--quantization=fp8",
            "--gpu-memory-utilization=0.8",
        ],
    ],
)
def test_it_is_the_same_however_the_flags_are_written(model: Path, same: list[str]) -> None:
    assert engine_identity(str(model), same) == engine_identity(str(model), ["--dtype=float32", "--quantization=fp8"])


def test_vllm_takes_a_flag_with_underscores_for_the_same(model: Path) -> None:
    written = [engine_identity(str(model), [f"{flag}=/t.jinja"]) for flag in ("--chat_template", "--chat-template")]
    assert written[0] == written[1]


def test_it_does_not_change_with_the_path_of_the_folder(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, moved)
    assert engine_identity(str(moved), []) == engine_identity(str(model), [])


@pytest.mark.parametrize("other", ["README.md", ".gitattributes"])
def test_it_does_not_change_with_files_that_no_answer_depends_on(model: Path, other: str) -> None:
    before = engine_identity(str(model), [])
    (model / other).write_text("hello")
    assert engine_identity(str(model), []) == before


def test_a_model_that_is_no_folder_counts_by_its_name(tmp_path: Path) -> None:
    assert engine_identity("Qwen/Qwen3-8B", []) == engine_identity("Qwen/Qwen3-8B", [])
    assert engine_identity("Qwen/Qwen3-8B", []) != engine_identity("Qwen/Qwen3-4B", [])


def test_of_large_weights_the_size_the_beginning_and_the_end_count(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE_FILE_BYTES", 100)
    monkeypatch.setattr(identity, "EDGE_BYTES", 10)
    weights = model / "model.safetensors"
    seen = set()
    for content in (b"a" * 200, b"b" + b"a" * 199, b"a" * 199 + b"b", b"a" * 201):
        weights.write_bytes(content)
        seen.add(engine_identity(str(model), []))
    assert len(seen) == 4
