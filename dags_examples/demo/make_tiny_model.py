"""Builds a language model of 0.9 MB that says nothing sensible, so that tests and benchmarks can run real vLLM.

Its weights are random and were never trained. Its answers are noise, and with ``choices`` it picks one of
them blindly. What it does have is what vLLM looks at: the Qwen3 architecture, a BPE tokenizer with a chat
template, a context of 2,048 tokens. Take it to see batches run, never to judge answers or speed.

Runs on the interpreter of the vLLM environment and asks the network for nothing. The same versions of torch and
transformers give the same bytes every time::

    .venv-vllm/bin/python dags_examples/demo/make_tiny_model.py OUT
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

SEED = 7
VOCABULARY = 1024
CONTEXT = 2048
LAYERS = 2
WIDTH = 64

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    + START
    + "{{ message.role }}\n{{ message.content }}"
    + END
    + "\n{% endfor %}{% if add_generation_prompt %}"
    + START
    + "assistant\n{% endif %}"
)

# Words of the sample data's subject, so that its texts do not fall apart into single letters.
SUBJECTS = ("package", "program", "library", "module", "tool", "server", "editor", "game", "font", "driver", "parser")
VERBS = ("provides", "contains", "reads", "writes", "converts", "displays", "manages", "supports", "implements")
OBJECTS = ("files", "data", "images", "sounds", "messages", "tables", "networks", "documents", "headers", "devices")
MANNERS = ("quickly", "safely", "for developers", "for users", "in Python", "in Perl", "in C", "on the desktop")
QUESTIONS = ("Which section does this belong to?", "Answer in one word.", "What is this about?", "Summarize this text.")


def sentences(count: int) -> Iterator[str]:
    """Sentences in the manner of package descriptions, the same ones every time."""
    pick = random.Random(SEED).choice  # noqa: S311 (text to train a tokenizer on, not a secret)
    for number in range(count):
        yield f"This {pick(SUBJECTS)} {pick(VERBS)} {pick(OBJECTS)} and {pick(OBJECTS)} {pick(MANNERS)}."
        yield f"lib{pick(SUBJECTS)}-{pick(OBJECTS)} {number}.{number % 9}: {pick(QUESTIONS)}"


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text encodes and decodes without loss, there is no unknown token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(2_000), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=CONTEXT
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def random_model(tokenizer: PreTrainedTokenizerFast, *, layers: int, width: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random float32 weights."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width if width <= WIDTH else 3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(1, width // 128),
        head_dim=32 if width <= WIDTH else 64,
        max_position_embeddings=CONTEXT,
        # Tied weights would make the likeliest next token the last one, over and over.
        tie_word_embeddings=False,
        # Ten times the usual spread, so that different prompts get different answers.
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    # vLLM takes its default sampling from this file; there is none in it, so a request alone decides.
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def build(out: Path, *, layers: int = LAYERS, width: int = WIDTH) -> None:
    """Write the model into the folder ``out``, which appears whole or not at all."""
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    disable_progress_bar()
    tokenizer = trained_tokenizer()
    random_model(tokenizer, layers=layers, width=width).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a tiny model of random weights, whose answers are noise.")
    parser.add_argument("out", type=Path, help="the folder to write; what it held is replaced")
    parser.add_argument("--layers", type=int, default=LAYERS, help="more of them for a benchmark of the engine")
    parser.add_argument("--width", type=int, default=WIDTH, help="the same; a multiple of 128")
    given = parser.parse_args()
    out = given.out.resolve()
    if out.exists() and not (out / "config.json").exists():
        sys.exit(f"{out} exists and holds no model (no config.json). Nothing was written. Name another folder.")
    build(out, layers=given.layers, width=given.width)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: a tiny model of random weights, {size / 1e6:.1f} MB. Its answers are noise.")


if __name__ == "__main__":
    main()
